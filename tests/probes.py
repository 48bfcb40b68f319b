"""Tiny environments of known value, to tell which part of a learner is broken.

One class of tables, so that all probes are one compiled program.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dynamic_graph_fed_rl.environments.base import Environment, Observation, Transition
from dynamic_graph_fed_rl.environments.spec import Column, Metric, Spec
from dynamic_graph_fed_rl.graph import vector_graph

STATES, CHOICES = 2, 2


class Traces:
    """How often `step` was traced: grows with every compilation that contains it."""

    count = 0


class Tabular(Environment):
    """A Markov decision process given by its tables, seen as one node that shows the state's feature."""

    start: Float[Array, "*owners states"]
    """Probability of each state at a reset."""
    feature: Float[Array, "*owners states"]
    reward: Float[Array, "*owners states choices"]
    successor: Int[Array, "*owners states choices"]
    terminated: Bool[Array, "*owners states choices"]
    truncated: Bool[Array, "*owners states choices"]
    traces: Traces = eqx.field(static=True, default=Traces())

    @property
    def spec(self) -> Spec:
        return Spec(
            agents=1,
            nodes=1,
            edges=0,
            slots=1,
            action="discrete",
            action_size=CHOICES,
            node_features=(Column("feature"),),
            metrics=(Metric("return", "return", lower_is_better=False),),
            headline="return",
            episode_decisions=2,
        )

    def observe(self, state: Int[Array, ""], first: Bool[Array, ""]) -> Observation:
        one = Observation(
            graph=vector_graph(self.feature[state][None]),
            slots=jnp.zeros((1, 0)),
            slot_owner=jnp.zeros(1, jnp.int32),
            action_mask=jnp.ones((1, CHOICES), bool),
            first=first,
            births=jnp.zeros(1, bool),
        )
        return jax.tree.map(lambda leaf: leaf[None], one)

    def reset(self, key):
        state = jax.random.categorical(key, jnp.log(self.start))
        return state, self.observe(state, jnp.asarray(True))

    def step(self, key, state, action):
        self.traces.count += 1
        choice = action[0, 0]
        after = self.successor[state, choice]
        reward = self.reward[state, choice]
        return after, Transition(
            observation=self.observe(after, jnp.asarray(False)),
            reward=reward[None],
            cost=jnp.zeros((1, 0)),
            terminated=self.terminated[state, choice][None],
            truncated=self.truncated[state, choice][None],
            info={"metrics": {"return": reward}},
        )


class Probe(NamedTuple):
    """A process, the discount to learn it with, and what is known of it: the value of each state that occurs and
    the best choice where there is one."""

    environment: Tabular
    discount: float
    value: dict[int, float]
    choice: dict[int, int]


def tabular(start, feature, reward, successor=None, terminated=True, truncated=False) -> Tabular:
    shape = (STATES, CHOICES)

    def table(values, kind) -> jax.Array:
        return jnp.asarray(np.broadcast_to(np.asarray(values, kind), shape))

    return Tabular(
        start=jnp.asarray(start, jnp.float32),
        feature=jnp.asarray(feature, jnp.float32),
        reward=table(reward, np.float32),
        successor=table(np.arange(STATES)[:, None] if successor is None else successor, np.int32),
        terminated=table(terminated, bool),
        truncated=table(truncated, bool),
    )


PROBES = {
    # does the critic learn at all?
    "one-step": Probe(tabular([1, 0], [0, 0], 1.0), 0.5, {0: 1.0}, {}),
    # does the critic read what it sees?
    "observation-dependent": Probe(tabular([0.5, 0.5], [-1, 1], [[-1], [1]]), 0.5, {0: -1.0, 1: 1.0}, {}),
    # does the value of a successor reach its predecessor, discounted?
    "discounted": Probe(
        tabular([1, 0], [-1, 1], [[0], [1]], [[1], [1]], [[False], [True]]), 0.5, {0: 0.5, 1: 1.0}, {}
    ),
    # does the actor prefer what pays?
    "action-dependent": Probe(tabular([1, 0], [0, 0], [[-1, 1], [0, 0]]), 0.5, {0: 1.0}, {0: 1}),
    # does it choose by what it sees?
    "observation-and-action": Probe(
        tabular([0.5, 0.5], [-1, 1], [[1, -1], [-1, 1]]), 0.5, {0: 1.0, 1: 1.0}, {0: 0, 1: 1}
    ),
    # is a choice credited with what comes a step later? (the first state ends unless choice 1 leads on)
    "two-step": Probe(
        tabular([1, 0], [-1, 1], [[0, 0], [1, 0]], [[0, 1], [1, 1]], [[True, False], [True, True]]),
        0.9,
        {0: 0.9, 1: 1.0},
        {0: 1, 1: 0},
    ),
    # does a time limit bootstrap? An endless stream of ones, cut off at every step
    "truncated": Probe(tabular([1, 0], [0, 0], 1.0, None, False, True), 0.8, {0: 5.0}, {}),
    # the same, cut off at every second step
    "truncated-later": Probe(tabular([1, 0], [0, 0], 1.0, [[1], [1]], False, [[False], [True]]), 0.8, {0: 5.0}, {}),
}
