"""Recall: the smallest network that cannot be controlled without memory. Three nodes, a question to each."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dynamic_graph_fed_rl.environments.base import Controller, Environment, Observation, Transition
from dynamic_graph_fed_rl.environments.domain import Domain
from dynamic_graph_fed_rl.environments.recall.settings import RecallSettings
from dynamic_graph_fed_rl.environments.spec import Column, Metric, Spec
from dynamic_graph_fed_rl.environments.vector import Idle, Uniform
from dynamic_graph_fed_rl.graph import Graph

NODES = 3
RING = np.arange(NODES, dtype=np.int32)
SENDERS = np.concatenate([RING, (RING + 1) % NODES])
RECEIVERS = np.concatenate([(RING + 1) % NODES, RING])
FLAG = 10.0
"""Height of a flag: a leaky average over 100 decisions has diluted it to 0.15 after 50, over 20 to 0.04."""
RETURN_RATE = 0.2
"""Chance that a node that is away comes back, each decision."""
AVERAGES_AN_EPISODE = 4
"""Length of an episode in windows of the moving average."""


class RecallState(eqx.Module):
    """What each node showed in the last `delay` decisions since its birth (0 otherwise), of which the sum's sign is
    the answer; what it shows now; which nodes are there, which were just born; the decisions so far."""

    window: Float[Array, "nodes delay"]
    signal: Float[Array, " nodes"]
    here: Bool[Array, " nodes"]
    born: Bool[Array, " nodes"]
    step: Int[Array, ""]


class Recall(Environment):
    """Answer for each node from what it showed before; a question is one discrete slot, 1 for "above 0".

    Observation: per node its signal, as a global whether the questions are open; edges join the nodes in a ring.
    Reward: share of the open questions answered rightly. Slots whose question is not open allow no choice.

    Task "flag": each node shows a flag of -10 or 10 at the first decision and 0 from then on; `delay` decisions
    later it is asked for it, and the episode terminates. Task "average": each node shows its demand, drawn from
    N(0, 1) at every decision, and is always asked whether the mean of the last `delay` of them, this one included,
    is above 0. A node leaves with a chance of `1 / (2 delay)`, and starts a new average when it comes back.
    Truncated after `4 delay` decisions.
    """

    task: Literal["flag", "average"] = eqx.field(static=True, default="flag")
    delay: int = eqx.field(static=True, default=10)

    @property
    def spec(self) -> Spec:
        return Spec(
            agents=1,
            nodes=NODES,
            edges=len(SENDERS),
            slots=NODES,
            action="discrete",
            action_size=2,
            node_features=(Column("signal"),),
            global_features=(Column("asked", dynamic=self.task == "flag"),),
            metrics=(Metric("share_right", "questions answered rightly", lower_is_better=False),),
            headline="share_right",
            episode_decisions=self.delay + 1 if self.task == "flag" else AVERAGES_AN_EPISODE * self.delay,
        )

    def reset(self, key: PRNGKeyArray) -> tuple[RecallState, Observation]:
        everywhere, nowhere = jnp.ones(NODES, bool), jnp.zeros(NODES, bool)
        shape = (NODES,)
        flag = FLAG * jax.random.rademacher(key, shape, float)
        shown = jax.random.normal(key, shape) if self.task == "average" else flag
        window = jnp.zeros((NODES, self.delay)).at[:, 0].set(shown)
        state = RecallState(window, shown, everywhere, nowhere, jnp.zeros((), jnp.int32))
        return state, self.observe(state, jnp.asarray(True))

    def step(
        self, key: PRNGKeyArray, state: RecallState, action: Int[Array, "agents slots"]
    ) -> tuple[RecallState, Transition]:
        asked = self.asked(state)
        right = ((action[0] == answer(state)) & asked).sum()
        share = right / jnp.maximum(asked.sum(), 1)
        after = self._flag_hidden(state) if self.task == "flag" else self._next_demand(key, state)
        over = after.step >= self.spec.episode_decisions
        ends = self.task == "flag"
        return after, Transition(
            observation=self.observe(after, jnp.asarray(False)),
            reward=share[None],
            cost=jnp.zeros((1, 0)),
            terminated=(over & ends)[None],
            truncated=(over & (not ends))[None],
            info={"metrics": {"right": right.astype(jnp.float32), "asked": asked.sum().astype(jnp.float32)}},
        )

    def episode_metrics(self, totals: dict[str, Array]) -> dict[str, Array]:
        return totals | {"share_right": totals["right"] / jnp.maximum(totals["asked"], 1.0)}

    def asked(self, state: RecallState) -> Bool[Array, " nodes"]:
        """Nodes whose question is open."""
        return state.here & self._open(state)

    def observe(self, state: RecallState, first: Bool[Array, ""]) -> Observation:
        asked = self.asked(state)
        one = Observation(
            graph=Graph(
                nodes=state.signal[:, None],
                edges=jnp.zeros((len(SENDERS), 0)),
                senders=jnp.asarray(SENDERS),
                receivers=jnp.asarray(RECEIVERS),
                node_mask=state.here,
                edge_mask=state.here[SENDERS] & state.here[RECEIVERS],
                globals=self._open(state)[None].astype(jnp.float32),
            ),
            slots=jnp.zeros((NODES, 0)),
            slot_owner=jnp.asarray(RING),
            action_mask=jnp.repeat(asked[:, None], 2, axis=1),
            first=first,
            births=state.born,
        )
        return jax.tree.map(lambda leaf: leaf[None], one)

    def _open(self, state: RecallState) -> Bool[Array, ""]:
        return jnp.asarray(True) if self.task == "average" else state.step == self.delay

    def _flag_hidden(self, state: RecallState) -> RecallState:
        return RecallState(state.window, jnp.zeros(NODES), state.here, state.born, state.step + 1)

    def _next_demand(self, key: PRNGKeyArray, state: RecallState) -> RecallState:
        demand_key, move_key = jax.random.split(key)
        moves = jax.random.uniform(move_key, (NODES,))
        here = jnp.where(state.here, moves >= 0.5 / self.delay, moves < RETURN_RATE)
        born = here & ~state.here
        demand = jnp.where(here, jax.random.normal(demand_key, (NODES,)), 0.0)
        kept = jnp.where((here & ~born)[:, None], state.window, 0.0)
        step = state.step + 1
        return RecallState(kept.at[:, step % self.delay].set(demand), demand, here, born, step)


def answer(state: RecallState) -> Int[Array, "*batch nodes"]:
    """The right choice for each node."""
    return (state.window.sum(-1) > 0).astype(jnp.int32)


class PerfectMemory(Controller):
    """The right answer every time, read from the state of the world."""

    def initial_memory(self, state, observation: Observation) -> None:
        return None

    def act(self, key: PRNGKeyArray, memory: None, state, observation: Observation) -> tuple[Array, None]:
        # every agent has worlds of its own, or the only agent has this one
        return answer(state).reshape(observation.slot_owner.shape), None


def build(settings: RecallSettings, agents: int) -> Domain:
    """Each agent has worlds of its own, all of one kind.

    Raises:
        ValueError: a delay below 1.
    """
    if settings.delay < 1:
        raise ValueError(f"delay {settings.delay}: must be at least 1")
    one = Recall(task=settings.task, delay=settings.delay)
    rules = {"do-nothing": Idle, "random": Uniform, "perfect-memory": PerfectMemory}
    help = {name: str(rule.__doc__) for name, rule in rules.items()}
    help["standard"] = "flags and demands drawn anew in every episode"
    baselines = {name: lambda _, rule=rule: rule() for name, rule in rules.items()}
    return Domain(one, agents, {"standard": one}, baselines, idle="do-nothing", help=help)
