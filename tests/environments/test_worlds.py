"""Axes, resets and owners, on a world that can be followed by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.base import Environment, Observation, Transition
from dynamic_graph_fed_rl.environments.spec import Column, Spec
from dynamic_graph_fed_rl.environments.worlds import Worlds, select
from dynamic_graph_fed_rl.graph import vector_graph


class Countdown(Environment):
    """Falls by `stride` a step from a drawn height; ends at 0. Each agent is paid its own action and sees the height
    and its own number."""

    stride: jax.Array
    agents: int = eqx.field(static=True)

    @property
    def spec(self) -> Spec:
        return Spec(
            agents=self.agents,
            nodes=1,
            edges=0,
            slots=1,
            action="continuous",
            action_size=1,
            node_features=(Column("height"), Column("agent", dynamic=False)),
            steps_per_decision=3,
        )

    def observe(self, height, first) -> Observation:
        agents = jnp.arange(self.agents, dtype=jnp.float32)
        graph = jax.vmap(lambda agent: vector_graph(jnp.stack([height, agent])))(agents)
        return Observation(
            graph=graph,
            slots=jnp.zeros((self.agents, 1, 0)),
            slot_owner=jnp.zeros((self.agents, 1), jnp.int32),
            action_mask=jnp.ones((self.agents, 1), bool),
            first=jnp.full(self.agents, first),
            births=jnp.zeros((self.agents, 1), bool),
        )

    def reset(self, key):
        height = jax.random.randint(key, (), 1, 6).astype(jnp.float32)
        return height, self.observe(height, True)

    def step(self, key, state, action):
        height = state - self.stride
        return height, Transition(
            observation=self.observe(height, False),
            reward=action[:, 0, 0],
            cost=jnp.zeros((self.agents, 0)),
            terminated=jnp.full(self.agents, height <= 0),
            truncated=jnp.zeros(self.agents, bool),
            info={"metrics": {"height": height}},
        )


AGENTS, COPIES = 2, 5


def test_a_shared_world_hands_every_agent_its_own_rows():
    worlds = Worlds(Countdown(jnp.ones(()), AGENTS), COPIES)
    assert worlds.agents == AGENTS
    state, observation = worlds.reset(jax.random.key(0))
    assert state.shape == (COPIES,)
    assert observation.graph.nodes.shape == (AGENTS, COPIES, 1, 2)
    for agent in range(AGENTS):
        np.testing.assert_array_equal(observation.graph.nodes[agent, :, 0, 0], state)
        np.testing.assert_array_equal(observation.graph.nodes[agent, :, 0, 1], agent)
    action = jnp.arange(AGENTS * COPIES, dtype=jnp.float32).reshape(AGENTS, COPIES, 1, 1)
    _, _, transition = worlds.step(jax.random.key(1), state, action)
    np.testing.assert_array_equal(transition.reward, action[..., 0, 0])
    assert transition.info["metrics"]["height"].shape == (COPIES,)


@pytest.mark.parametrize("owners", [None, AGENTS])
def test_only_what_has_finished_begins_anew_and_its_true_successor_is_kept(owners):
    one = Countdown(jnp.ones(()), AGENTS if owners is None else 1)
    if owners is not None:
        one = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], owners, axis=0), one)
    worlds = Worlds(one, COPIES, owners)
    step = eqx.filter_jit(worlds.step)
    state, observation = worlds.reset(jax.random.key(0))
    action = jnp.zeros((AGENTS, COPIES, 1, 1))
    assert observation.first.all()
    ended = 0
    for key in jax.random.split(jax.random.key(1), 12):
        before, (state, observation, transition) = np.asarray(state), step(key, state, action)
        done = np.asarray(transition.terminated)
        height = np.broadcast_to(before, done.shape)
        np.testing.assert_array_equal(done, height <= 1)
        np.testing.assert_array_equal(transition.observation.graph.nodes[..., 0, 0], height - 1)
        assert not transition.observation.first.any()
        np.testing.assert_array_equal(observation.first, done)
        after = np.broadcast_to(np.asarray(state), done.shape)
        np.testing.assert_array_equal(observation.graph.nodes[..., 0, 0], after)
        np.testing.assert_array_equal(after[~done], (height - 1)[~done])
        assert ((after[done] >= 1) & (after[done] <= 5)).all()
        ended += done.sum()
    assert ended > 0


def test_owners_have_worlds_and_parameters_of_their_own():
    owned = Countdown(jnp.asarray([0.25, 0.5]), 1)
    worlds = Worlds(owned, COPIES, owners=2)
    assert worlds.agents == 2
    state, observation = worlds.reset(jax.random.key(0))
    assert state.shape == (2, COPIES)
    assert observation.graph.nodes.shape == (2, COPIES, 1, 2)
    assert (np.asarray(state[0]) != np.asarray(state[1])).any()
    after, transition = worlds.advance(worlds.keys(jax.random.key(1)), state, jnp.zeros((2, COPIES, 1, 1)))
    np.testing.assert_allclose(state - after, np.broadcast_to([[0.25], [0.5]], (2, COPIES)))
    assert transition.reward.shape == (2, COPIES)


def test_worlds_differ_and_repeat_with_their_key():
    worlds = Worlds(Countdown(jnp.ones(()), 1), 32)
    first, _ = worlds.reset(jax.random.key(0))
    again, _ = worlds.reset(jax.random.key(0))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first)) > 1


def test_select_over_leading_and_inner_axes():
    new, old = {"a": jnp.ones((2, 3, 4))}, {"a": jnp.zeros((2, 3, 4))}
    by_row = select(jnp.asarray([True, False]), new, old)["a"]
    assert by_row[0].all() and not by_row[1].any()
    by_column = select(jnp.asarray([False, True, False]), new, old, axis=1)["a"]
    assert by_column[:, 1].all() and not by_column[:, [0, 2]].any()


@pytest.mark.parametrize("owners", [None, 2])
def test_siblings_begin_alike_and_meet_the_same_luck(owners):
    environment = Countdown(jnp.asarray(1.0) if owners is None else jnp.ones(owners), 1)
    worlds = Worlds(environment, 6, owners, siblings=3)
    keys = jax.random.key_data(worlds.keys(jax.random.key(0)))
    families = keys.reshape(*keys.shape[:-2], 2, 3, -1)
    np.testing.assert_array_equal(families, np.broadcast_to(families[..., :1, :], families.shape))
    assert (families[..., 0, 0, :] != families[..., 1, 0, :]).any()
    state, _ = worlds.reset(jax.random.key(1))
    heights = np.asarray(state).reshape(-1, 2, 3)
    assert (heights == heights[..., :1]).all()
