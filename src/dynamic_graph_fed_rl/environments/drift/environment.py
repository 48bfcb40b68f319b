"""Drift: the smallest federation of unlike worlds. Four numbers, one push for all of them, a stride an agent."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dynamic_graph_fed_rl.environments.base import Controller, Environment, Observation, Transition
from dynamic_graph_fed_rl.environments.domain import Domain
from dynamic_graph_fed_rl.environments.drift.settings import DriftSettings
from dynamic_graph_fed_rl.environments.spec import Column, Metric, Spec
from dynamic_graph_fed_rl.environments.vector import Idle, Uniform, observe

NUMBERS = 4
STRIDE_PER_DIFFICULTY = 0.1
LIMIT = 5.0


class DriftState(eqx.Module):
    """The four numbers and the steps so far."""

    numbers: Float[Array, "4"]
    step: Int[Array, ""]


class Drift(Environment):
    """Hold four numbers near 0 with a push that moves all of them at once.

    At a reset each is drawn from N(0, 1). Observation: one node, the four numbers. Action: one discrete slot, 1
    adds `0.1 * difficulty` to every number and 0 subtracts it. Terminated when a number lies beyond ±5, truncated
    after `time_limit` steps.

    Reward: `1 - mean|number| / 5` while all numbers are inside, never negative there, and 0 from the step that
    leaves on. (With the bare `-mean|number|` running out of the region would pay: the punishment stops.) The
    metric `episode_return` is the sum of that bare `-mean|number|` over the whole horizon; numbers that have left
    stay where they are and go on counting, so that leaving does not pay there either. Until a world is left it is
    the sum of the rewards, scaled and shifted.
    """

    difficulty: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=1.0)
    time_limit: int = eqx.field(static=True, default=200)

    @property
    def spec(self) -> Spec:
        return Spec(
            agents=1,
            nodes=1,
            edges=0,
            slots=1,
            action="discrete",
            action_size=2,
            node_features=tuple(Column(f"number_{i}") for i in range(NUMBERS)),
            metrics=(
                Metric("episode_return", "return", lower_is_better=False),
                Metric("steps_inside", "steps inside", lower_is_better=False),
            ),
            headline="episode_return",
            episode_decisions=self.time_limit,
        )

    @property
    def stride(self) -> Float[Array, "*owners"]:
        """How far a push moves every number."""
        return STRIDE_PER_DIFFICULTY * self.difficulty

    def reset(self, key: PRNGKeyArray) -> tuple[DriftState, Observation]:
        state = DriftState(jax.random.normal(key, (NUMBERS,)), jnp.zeros((), jnp.int32))
        return state, observe(state.numbers, 2, jnp.asarray(True))

    def step(
        self, key: PRNGKeyArray, state: DriftState, action: Int[Array, "agents slots"]
    ) -> tuple[DriftState, Transition]:
        push = jnp.where(action[0, 0] == 1, self.stride, -self.stride)
        # evaluation steps a world on after its end
        push = jnp.where(_outside(state.numbers), 0.0, push)
        after = DriftState(state.numbers + push, state.step + 1)
        left = _outside(after.numbers)
        distance = jnp.abs(after.numbers).mean()
        return after, Transition(
            observation=observe(after.numbers, 2, jnp.asarray(False)),
            reward=jnp.where(left, 0.0, 1.0 - distance / LIMIT)[None],
            cost=jnp.zeros((1, 0)),
            terminated=left[None],
            truncated=(~left & (after.step >= self.time_limit))[None],
            info={"metrics": {"episode_return": -distance, "steps_inside": (~left).astype(jnp.float32)}},
        )


def _outside(numbers: Float[Array, "4"]) -> Bool[Array, ""]:
    return jnp.abs(numbers).max() > LIMIT


class PushBack(Controller):
    """The push after which the mean |number| is smaller: optimal, as that mean is convex in the sum of pushes."""

    stride: Float[Array, " agents"]

    def initial_memory(self, state, observation: Observation) -> None:
        return None

    def act(self, key: PRNGKeyArray, memory: None, state, observation: Observation) -> tuple[Array, None]:
        numbers = observation.graph.nodes[..., 0, :]
        stride = self.stride[:, None, None]
        up, down = (jnp.abs(numbers + push).mean(-1) for push in (stride, -stride))
        return (up < down).astype(jnp.int32)[..., None], None


def build(settings: DriftSettings, agents: int) -> Domain:
    """Each agent has worlds of its own, the next one's more difficult; a centralised run is a single agent.

    Raises:
        ValueError: a difficulty that is not above 0, or no steps.
    """
    difficulties = [settings.first_difficulty + settings.difficulty_spacing * i for i in range(agents)]
    for agent, difficulty in enumerate(difficulties):
        if not difficulty > 0:
            raise ValueError(
                f"first_difficulty {settings.first_difficulty}, difficulty_spacing {settings.difficulty_spacing}: "
                f"agent {agent} would have difficulty {difficulty:g}; must be above 0"
            )
    if settings.time_limit < 1:
        raise ValueError(f"time_limit {settings.time_limit}: must be at least 1")
    owned = Drift(difficulty=jnp.asarray(difficulties, jnp.float32), time_limit=settings.time_limit)
    help = {
        "do-nothing": str(Idle.__doc__),
        "random": str(Uniform.__doc__),
        "push-back": str(PushBack.__doc__),
        "standard": "every number starts from N(0, 1)",
    }
    baselines = {
        "do-nothing": lambda _: Idle(),
        "random": lambda _: Uniform(),
        "push-back": lambda _: PushBack(owned.stride),
    }
    return Domain(owned, agents, {"standard": owned}, baselines, idle="do-nothing", help=help)
