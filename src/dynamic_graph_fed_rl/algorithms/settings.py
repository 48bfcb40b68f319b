"""Every algorithm by name: its hyperparameters, and the module that builds it. No jax import."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LearningSettings:
    """What the settings of every algorithm have."""

    learning_rate: float = 1e-3
    """Adam's step size; falls linearly to 0 over the run."""
    discount: float = 0.99
    """Weight of the next decision's value (gamma)."""
    entropy_weight: float = 0.0
    """Bonus for entropy of the policy, per slot."""
    max_gradient_norm: float = 0.5
    """Gradients are scaled down to this global norm."""
    epochs: int = 1
    """Passes over a round's experience."""
    minibatches: int = 1
    """Parts of a pass, a gradient step each; worlds are divided among them."""
    siblings: int = 1
    """Worlds that meet the same luck (start, weather, faults) and are judged against each other; 1: none do."""
    proximal: float = 0.0
    """FedProx (Li et al. 2020): weight of half the squared distance to the parameters received in the exchange."""
    width: int = 32
    """Width of the hidden layers."""
    layers: int = 1
    """Message-passing layers."""
    initial_std: float = 0.1
    """Standard deviation of exploration at the start, continuous actions, of a range of [-1, 1]."""

    def check(self, worlds: int) -> None:
        """Refuse what cannot be with so many worlds.

        Raises:
            ValueError: naming the setting, its value, and what would be right.
        """
        for name in ("epochs", "minibatches", "siblings", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 1")
        if worlds % self.minibatches:
            raise ValueError(f"minibatches {self.minibatches}: must divide the number of worlds ({worlds})")
        if worlds % self.siblings:
            raise ValueError(f"siblings {self.siblings}: must divide the number of worlds ({worlds})")
        if self.proximal < 0:
            raise ValueError(f"proximal {self.proximal}: must be at least 0")
        if self.proximal > 0 and self.epochs * self.minibatches == 1:
            raise ValueError(
                f"proximal {self.proximal}: does nothing in a round of one gradient step, which starts from the "
                "received parameters; needs more epochs or minibatches"
            )


@dataclass(frozen=True)
class PPOSettings(LearningSettings):
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


@dataclass(frozen=True)
class A2CSettings(LearningSettings):
    """Advantage actor-critic (Mnih et al. 2016), synchronous: one gradient step a round."""

    learning_rate: float = 5e-3
    """Adam's step size; falls linearly to 0 over the run."""
    trace: float = 1.0
    """Mixing of one-step and full returns (lambda of generalised advantage estimation); 1 is the n-step return."""
    value_weight: float = 0.5
    """Weight of the critic's error."""


@dataclass(frozen=True)
class ReinforceSettings(LearningSettings):
    """REINFORCE (Williams 1992): discounted returns to go of episodes that ended, no critic."""

    learning_rate: float = 5e-3
    """Adam's step size; falls linearly to 0 over the run."""


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
}
