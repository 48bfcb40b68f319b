"""Every algorithm by name: its hyperparameters, and the module that builds it. No jax import."""

import abc
from dataclasses import dataclass
from typing import Literal

from dynamic_graph_fed_rl.augmentation.settings import AugmentationSettings, critical_column
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.models.registry import ENCODERS, MEMORIES


@dataclass(frozen=True)
class LearningSettings(abc.ABC):
    """What the settings of every algorithm have."""

    learning_rate: float = 1e-3
    """Adam's step size; falls linearly to 0 over the run."""
    discount: float = 0.99
    """Weight of the next decision's value (gamma)."""
    max_gradient_norm: float = 0.5
    """Gradients are scaled down to this global norm."""
    siblings: int = 1
    """Worlds that meet the same luck (start, weather, faults) and are judged against each other; 1: none do."""
    proximal: float = 0.0
    """FedProx (Li et al. 2020): weight of half the squared distance to the parameters received in the exchange."""
    width: int = 32
    """Width of the hidden layers."""
    layers: int = 1
    """Message-passing layers."""
    encoder: str = "edge-gated"
    """Graph network by name: edge-gated, gatv2, transformer, tgn, gru, mingru, multi-scale, temporal_attention or
    static_gcn."""
    memory: str | None = None
    """What nodes remember, if not what goes with the encoder: none, leaky, gru, mingru, tgn or multi-scale."""

    @property
    @abc.abstractmethod
    def gradient_steps(self) -> int:
        """Steps of the optimiser in a round."""

    def check(self, worlds: int, decisions: int) -> None:
        """Refuse what cannot be with so many worlds, and so many decisions in each a round.

        Raises:
            ValueError: naming the setting, its value, and what would be right.
        """
        at_least_one(self, "siblings", "width")
        for name, table in (("encoder", ENCODERS), ("memory", MEMORIES)):
            chosen = getattr(self, name)
            if chosen is not None and chosen not in table:
                raise ValueError(f"{name} '{chosen}': unknown; known: {', '.join(table)}")
        if worlds % self.siblings:
            raise ValueError(f"siblings {self.siblings}: must divide the number of worlds ({worlds})")
        if self.proximal < 0:
            raise ValueError(f"proximal {self.proximal}: must be at least 0")
        if self.proximal > 0 and self.gradient_steps == 1:
            raise ValueError(
                f"proximal {self.proximal}: does nothing in a round of one gradient step, which starts from the "
                "received parameters; needs more of them"
            )

    def check_spec(self, spec: Spec) -> None:  # noqa: B027  (most have nothing to refuse)
        """Refuse what the environment does not have.

        Raises:
            ValueError: naming the setting, its value, and what would be right.
        """


def at_least_one(settings: LearningSettings, *names: str) -> None:
    """
    Raises:
        ValueError: a setting below 1.
    """
    for name in names:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} {getattr(settings, name)}: must be at least 1")


@dataclass(frozen=True)
class OnPolicySettings(LearningSettings):
    """What learning from the experience of one round needs."""

    epochs: int = 1
    """Passes over a round's experience."""
    minibatches: int = 1
    """Parts of a pass, a gradient step each; worlds are divided among them."""

    @property
    def gradient_steps(self) -> int:
        return self.epochs * self.minibatches

    def check(self, worlds: int, decisions: int) -> None:
        at_least_one(self, "epochs", "minibatches")
        if worlds % self.minibatches:
            raise ValueError(f"minibatches {self.minibatches}: must divide the number of worlds ({worlds})")
        super().check(worlds, decisions)


@dataclass(frozen=True)
class PolicyGradientSettings(OnPolicySettings):
    """What following the gradient of a stochastic policy needs."""

    entropy_weight: float = 0.0
    """Bonus for entropy of the policy, per slot."""
    initial_std: float = 0.1
    """Standard deviation of exploration at the start, continuous actions, of a range of [-1, 1]."""


@dataclass(frozen=True)
class PPOSettings(AugmentationSettings, PolicyGradientSettings):
    """Proximal policy optimisation (Schulman et al. 2017), clipped a slot at a time."""

    trace: float = 0.95
    """Mixing of one-step and full returns (lambda of generalised advantage estimation)."""
    clip: float = 0.2
    """How far a slot's likelihood ratio may move before its gradient stops."""
    value_weight: float = 0.5
    """Weight of the critic's error."""
    epochs: int = 4
    """Passes over a round's experience."""
    minibatches: int = 4
    """Parts of a pass, a gradient step each; worlds are divided among them."""

    def check(self, worlds: int, decisions: int) -> None:
        self.check_augmentation()
        super().check(worlds, decisions)

    def check_spec(self, spec: Spec) -> None:
        critical_column(self.critical_edge, [column.name for column in spec.edge_features])
        super().check_spec(spec)


@dataclass(frozen=True)
class A2CSettings(PolicyGradientSettings):
    """Advantage actor-critic (Mnih et al. 2016), synchronous: one gradient step a round."""

    learning_rate: float = 5e-3
    """Adam's step size; falls linearly to 0 over the run."""
    trace: float = 1.0
    """Mixing of one-step and full returns (lambda of generalised advantage estimation); 1 is the n-step return."""
    value_weight: float = 0.5
    """Weight of the critic's error."""


@dataclass(frozen=True)
class ReinforceSettings(PolicyGradientSettings):
    """REINFORCE (Williams 1992): discounted returns to go of episodes that ended, no critic."""

    learning_rate: float = 5e-3
    """Adam's step size; falls linearly to 0 over the run."""


@dataclass(frozen=True)
class OffPolicySettings(LearningSettings):
    """What learning from replay needs."""

    learning_rate: float = 3e-4
    """Adam's step size."""
    max_gradient_norm: float = 10.0
    """Gradients are scaled down to this global norm."""
    batch_size: int = 256
    """Decisions that a gradient step learns from."""
    updates: int = 16
    """Gradient steps in a lesson, of which a round has one unless told otherwise."""
    replay: int = 100_000
    """Decisions kept by each agent, over all its worlds."""
    window: int = 1
    """Consecutive decisions learned from together; what the agent remembered is kept once a window."""
    steps: int = 1
    """Rewards taken from experience before a value is trusted (n-step returns)."""
    warm_up: int = 1000
    """Decisions, over all worlds, before the first gradient step."""
    target_rate: float = 0.005
    """How far the slow copies move towards the networks each time."""
    update_delay: int = 1
    """Gradient steps of the critic for each of what follows it: slow copies and, in TD3, the actor."""
    priority: Literal["uniform", "td-error", "topology-change"] = "uniform"
    """What is drawn from replay more often: large errors, or what came shortly after a topology change."""
    value_scale: float = 0.0
    """Values are learned in units of this; the same for all who share networks. 0: as the first rewards suggest."""

    @property
    def gradient_steps(self) -> int:
        return self.updates

    def check(self, worlds: int, decisions: int) -> None:
        at_least_one(self, "batch_size", "updates", "replay", "window", "steps", "update_delay")
        if decisions % self.window:
            raise ValueError(f"window {self.window}: must divide the decisions of a round ({decisions})")
        if self.batch_size % self.window:
            raise ValueError(f"batch_size {self.batch_size}: must be a multiple of the window ({self.window})")
        needed = (self.window + self.steps) * worlds
        if self.warm_up < needed:
            raise ValueError(
                f"warm_up {self.warm_up}: a window of {self.window} decisions and {self.steps} after it in "
                f"{worlds} worlds need at least {needed}"
            )
        if self.value_scale < 0:
            raise ValueError(f"value_scale {self.value_scale}: must be at least 0")
        if self.replay < self.warm_up:
            raise ValueError(f"replay {self.replay}: must hold the warm-up ({self.warm_up}) at least")
        super().check(worlds, decisions)


@dataclass(frozen=True)
class ContinuousSettings(OffPolicySettings):
    """What two critics of continuous actions need."""

    value_limit: float = 0.0
    """Targets are cut at this many spreads of the values, so that rare disasters do not drown the rest; 0: never."""
    critic: Literal["free", "quadratic"] = "free"
    """Values as any function of actions, or as a parabola of each number, at first best at 0 (Gu et al. 2016)."""
    actor_rate_falls: bool = False
    """Whether the actor's step size falls linearly to 0 over the run."""
    initial_std: float = 1.0
    """Standard deviation of actions at the start (TD3: during the warm-up; SAC: before tanh), of a range of [-1, 1];
    the unit in which quadratic critics measure actions."""

    def check(self, worlds: int, decisions: int) -> None:
        super().check(worlds, decisions)
        if self.batch_size % (self.window * self.siblings):
            raise ValueError(
                f"batch_size {self.batch_size}: must be a multiple of the window ({self.window}) times the siblings "
                f"({self.siblings}), which are compared"
            )


@dataclass(frozen=True)
class TD3Settings(ContinuousSettings):
    """Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018)."""

    exploration_std: float = 0.1
    """Standard deviation of actions after it."""
    update_delay: int = 2
    """Gradient steps of the critics for each of the actor and the slow copies."""
    target_noise: float = 0.2
    """Standard deviation of the noise on target actions."""
    target_noise_limit: float = 0.5
    """The most that noise moves a target action."""


@dataclass(frozen=True)
class SACSettings(ContinuousSettings):
    """Soft actor-critic (Haarnoja et al. 2018) with a temperature that finds itself."""

    temperature: float = 0.1
    """Price of entropy at the start, in units of the values' spread."""
    target_entropy: float = -1.0
    """Entropy wanted for each number of an action."""


@dataclass(frozen=True)
class ChoiceSettings(LearningSettings):
    """What learning values of discrete choices needs."""

    dueling: bool = False
    """Sum of a value of the slot and advantages of its choices (Wang et al. 2016)."""
    layer_norm: bool = False
    """Layer normalisation before every activation."""
    first_epsilon: float = 1.0
    """Share of choices at random at the start; falls linearly to the last."""
    last_epsilon: float = 0.05
    """Share of choices at random at the end."""
    exploration_share: float = 0.5
    """Share of the run after which epsilon is the last."""

    def check(self, worlds: int, decisions: int) -> None:
        if not 0 <= self.last_epsilon <= self.first_epsilon <= 1:
            raise ValueError(
                f"first_epsilon {self.first_epsilon}, last_epsilon {self.last_epsilon}: must be within 0 and 1, the "
                "last no greater than the first"
            )
        if not 0 < self.exploration_share <= 1:
            raise ValueError(f"exploration_share {self.exploration_share}: must be above 0 and at most 1")
        super().check(worlds, decisions)


@dataclass(frozen=True)
class DQNSettings(OffPolicySettings, ChoiceSettings):
    """Deep Q-network (Mnih et al. 2015): values of choices, from replay, with slow copies to bootstrap from."""

    double: bool = True
    """The networks choose what their slow copies evaluate (van Hasselt et al. 2016)."""
    target_rate: float = 1.0
    """How far the slow copies move towards the networks each time."""
    update_delay: int = 500
    """Gradient steps for each move of the slow copies."""


@dataclass(frozen=True)
class PQNSettings(OnPolicySettings, ChoiceSettings):
    """Parallelised Q-network (Gallici et al. 2024): values of choices without replay or slow copies."""

    layer_norm: bool = True
    """Layer normalisation before every activation, which keeps it stable without slow copies."""
    trace: float = 0.65
    """Mixing of one-step and full returns (lambda)."""
    max_gradient_norm: float = 10.0
    """Gradients are scaled down to this global norm."""
    epochs: int = 4
    """Passes over a round's experience."""


@dataclass(frozen=True)
class Entry:
    """`module` offers `build(settings, rounds) -> Algorithm`; `actions` are the kinds it can act with."""

    help: str
    settings: type[LearningSettings]
    module: str
    actions: tuple[str, ...]


ALGORITHMS = {
    "ppo": Entry(
        "on-policy actor-critic with clipped updates; continuous and discrete actions",
        PPOSettings,
        "dynamic_graph_fed_rl.algorithms.ppo",
        ("continuous", "discrete"),
    ),
    "a2c": Entry(
        "synchronous advantage actor-critic, one gradient step a round; continuous and discrete actions",
        A2CSettings,
        "dynamic_graph_fed_rl.algorithms.a2c",
        ("continuous", "discrete"),
    ),
    "reinforce": Entry(
        "policy gradient on returns of whole episodes, without a critic; continuous and discrete actions",
        ReinforceSettings,
        "dynamic_graph_fed_rl.algorithms.reinforce",
        ("continuous", "discrete"),
    ),
    "td3": Entry(
        "off-policy actor-critic with a deterministic policy and twin critics; continuous actions",
        TD3Settings,
        "dynamic_graph_fed_rl.algorithms.td3",
        ("continuous",),
    ),
    "sac": Entry(
        "off-policy actor-critic that is paid for entropy; continuous actions",
        SACSettings,
        "dynamic_graph_fed_rl.algorithms.sac",
        ("continuous",),
    ),
    "dqn": Entry(
        "values of choices learned from replay, with double, dueling and n-step variants; discrete actions",
        DQNSettings,
        "dynamic_graph_fed_rl.algorithms.dqn",
        ("discrete",),
    ),
    "pqn": Entry(
        "values of choices learned from many worlds at once, without replay; discrete actions",
        PQNSettings,
        "dynamic_graph_fed_rl.algorithms.pqn",
        ("discrete",),
    ),
}
