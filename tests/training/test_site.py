"""The two halves of a round apart from each other, beside the round in one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.experiment import build, default_experiment
from dynamic_graph_fed_rl.training.site import InTurn, Server, Site, Told

AGENTS, ROUNDS = 3, 3
REPLAY = {"lessons": 2, "updates": 2, "batch_size": 16, "warm_up": 32, "replay": 256, "memory": "none"}
TABLE = [
    ("server", "ppo", {"minibatches": 1, "epochs": 1, "dropout": 0.4}),
    ("shared", "dqn", REPLAY),
    ("hybrid", "dqn", REPLAY | {"dropout": 0.4}),
]


def trainer_for(federation, algorithm, fields):
    sizes = {"agents": AGENTS, "worlds": 2, "decisions_per_round": 8, "rounds": 4, "width": 8, "layers": 0}
    return build(
        default_experiment("cartpole", algorithm=algorithm, federation=federation, **(sizes | fields))
    ).trainer


def numbers(tree):
    return [
        np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for leaf in jax.tree.leaves(tree)
    ]


@pytest.mark.parametrize(("federation", "algorithm", "fields"), TABLE, ids=[row[0] for row in TABLE])
def test_in_turn_is_all_at_once_and_the_halves_apart_are_in_turn(federation, algorithm, fields):
    """All at once and one after the other agree up to rounding; the halves, each on its own, to the last bit."""
    trainer = trainer_for(federation, algorithm, fields)
    key, in_turn = jax.random.key(7), InTurn(trainer)
    together, turn = trainer.init(key), trainer.init(key)
    server, sites = Server.of(trainer), [Site.of(trainer, place) for place in range(AGENTS)]
    held = server.init(key)
    states = [site.init(key) for site in sites]
    absences = 0
    for _ in range(ROUNDS):
        planned = trainer.federation.plan(jax.random.split(together.key, 4)[1], together.federation)[1]
        active = planned.active[-AGENTS:]
        absences += int((~active).sum())
        together, metrics = trainer.run_round(together)
        turn, in_turn_metrics = in_turn.run_round(turn)
        assert metrics.keys() == in_turn_metrics.keys()
        np.testing.assert_allclose(metrics["reward"], in_turn_metrics["reward"], rtol=1e-6)

        sent, told = [], []
        for place, site in enumerate(sites):
            copy = jax.tree.map(jnp.copy, states[place])
            after, vector, heard, _ = site.work(copy)
            states[place] = after if active[place] else states[place]
            sent.append(vector)
            told.append(heard)
        pooled = jax.tree.map(lambda *leaves: jnp.stack(leaves), *told) if trainer.pool is not None else None
        held, _ = server.close(held, jnp.stack(sent), active, pooled, active)
        states = [site.receive(one, row, held.round) for site, one, row in zip(sites, states, held.held, strict=True)]

    # some row of the table is about agents that are away
    assert absences > 0 or not fields.get("dropout")
    for one, other in zip(numbers(together.learners), numbers(turn.learners), strict=True):
        np.testing.assert_allclose(one.astype(float), other.astype(float), rtol=2e-5, atol=2e-5)
    for place, state in enumerate(states):
        alone = jax.tree.map(lambda leaf, i=place: leaf[i : i + 1], (turn.learners[0], turn.actors[0]))
        for one, other in zip(numbers((state.learners, state.actors)), numbers(alone), strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_is_told_has_the_announced_shapes_and_gives_the_experience_back():
    trainer = trainer_for(*TABLE[1])
    site = Site.of(trainer, 1)
    _, _, told, _ = site.work(site.init(jax.random.key(0)))
    announced = Server.of(trainer).told()
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), told) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), announced
    )
    experience = told.experience()
    np.testing.assert_array_equal(experience.transition.reward, told.reward)
    # a row's successor is the row after it, the last one's is what was seen last
    following = experience.transition.observation.graph.nodes
    np.testing.assert_array_equal(following[:-1], told.observation.graph.nodes[1:])
    np.testing.assert_array_equal(following[-1], told.last.graph.nodes)
    assert jax.tree.structure(Told.of(experience)) == jax.tree.structure(told)


def test_work_done_again_while_nobody_can_be_reached_draws_other_luck():
    trainer = trainer_for(*TABLE[0])
    site = Site.of(trainer, 0)
    first = [site.work(site.init(jax.random.key(0)), n)[2].action for n in (0, 0, 1)]
    np.testing.assert_array_equal(first[0], first[1])
    assert (np.asarray(first[0]) != np.asarray(first[2])).any()


def test_agents_in_one_world_have_no_sites():
    trainer = build(
        default_experiment("power-grid", case="ieee14", agents=2, worlds=4, minibatches=1, rounds=1)
    ).trainer
    with pytest.raises(ValueError, match="a world of their own"):
        Site.of(trainer, 0)
