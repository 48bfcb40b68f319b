"""A small shared network, made so that every part of an observation is there and some of it masked."""

import equinox as eqx
import jax
import jax.numpy as jnp

from dynamic_graph_fed_rl.environments.base import Environment, Observation, Transition
from dynamic_graph_fed_rl.environments.spec import Column, Metric, Spec
from dynamic_graph_fed_rl.graph import Graph

AGENTS, NODES, EDGES, SLOTS, LIMIT = 2, 3, 2, 2, 6


class Ring(Environment):
    """Three nodes of which agent 1 lacks the last, two edges of which agent 0 lacks the last; agent 1 has one slot.

    Levels walk at random and follow the actions. Terminated when the first is above 1, truncated after 6 decisions.
    """

    discrete: bool = eqx.field(static=True, default=False)

    @property
    def spec(self) -> Spec:
        return Spec(
            agents=AGENTS,
            nodes=NODES,
            edges=EDGES,
            slots=SLOTS,
            action="discrete" if self.discrete else "continuous",
            action_size=3 if self.discrete else 2,
            node_features=(Column("level", "m"),),
            edge_features=(Column("flow"), Column("length")),
            global_features=(Column("hour", "h"),),
            slot_features=(Column("reach"),),
            costs=(Column("spill"),),
            metrics=(Metric("moved", "moved"),),
            headline="moved",
            episode_decisions=LIMIT,
        )

    def reset(self, key):
        level = jax.random.normal(key, (NODES,))
        return (level, jnp.zeros((), jnp.int32)), self._observe(level, jnp.zeros((), jnp.int32), True)

    def step(self, key, state, action):
        level, decisions = state
        # every number of every slot moves the levels by a share of its own
        weights = jnp.arange(1.0, action.size + 1.0).reshape(action.shape)
        moved = (weights * action).sum()
        level = level + 0.1 * jax.random.normal(key, (NODES,)) + 0.01 * moved
        state = (level, decisions + 1)
        fell = level[0] > 1.0
        return state, Transition(
            observation=self._observe(*state, False),
            reward=jnp.stack([moved, -level[0]]),
            cost=jnp.stack([level[:1], level[1:2]]),
            terminated=jnp.repeat(fell, AGENTS),
            truncated=jnp.repeat(~fell & (decisions + 1 >= LIMIT), AGENTS),
            info={"metrics": {"total_moved": moved}},
        )

    def episode_metrics(self, totals):
        return {"moved": totals["total_moved"], "beside": jnp.zeros(())}

    def _observe(self, level, decisions, first) -> Observation:
        node_mask = jnp.array([[True, True, True], [True, True, False]])
        usable = jnp.array([[True, True], [True, False]])
        choices = jnp.broadcast_to(usable[..., None], (AGENTS, SLOTS, 3)) & jnp.array([True, True, False])
        return Observation(
            graph=Graph(
                nodes=jnp.stack([level, level + 10.0])[..., None],
                edges=jnp.full((AGENTS, EDGES, 2), 7.0) + level[0],
                senders=jnp.tile(jnp.array([0, 1]), (AGENTS, 1)),
                receivers=jnp.tile(jnp.array([1, 0]), (AGENTS, 1)),
                node_mask=node_mask,
                edge_mask=jnp.array([[True, False], [True, True]]),
                globals=jnp.full((AGENTS, 1), decisions, jnp.float32),
            ),
            slots=jnp.full((AGENTS, SLOTS, 1), 5.0),
            slot_owner=jnp.tile(jnp.array([0, NODES]), (AGENTS, 1)),
            action_mask=choices if self.discrete else usable,
            first=jnp.full(AGENTS, first),
            births=jnp.zeros((AGENTS, NODES), bool),
        )
