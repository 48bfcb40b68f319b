"""PPO on CartPole; on environments of known value it is in `test_probes.py`."""

import jax

from dynamic_graph_fed_rl.evaluation.evaluate import evaluation_keys, run_episodes
from dynamic_graph_fed_rl.experiment import build, default_experiment


def test_cartpole_as_a_graph_of_one_node_reaches_475_within_500_000_steps():
    decisions, worlds = 32, 32
    limit = 500_000 // (decisions * worlds)
    experiment = default_experiment(
        "cartpole", federation="independent", agents=1, rounds=limit, decisions_per_round=decisions, worlds=worlds,
        learning_rate=2.5e-3, discount=0.99, trace=0.95, entropy_weight=0.01, epochs=4, minibatches=4, width=64,
        layers=1,
    )  # fmt: skip
    built = build(experiment)
    training = built.trainer.init(jax.random.key(0))
    keys, best = evaluation_keys(0, 16), 0.0
    for round_number in range(1, limit + 1):
        training, _ = built.trainer.run_round(training)
        if round_number % 50 == 0:
            standard = built.domain.scenarios["standard"]
            episodes = run_episodes(built.policy(training), standard, built.domain.owners, keys)
            best = float(episodes["episode_return"].mean())
            if best >= 475:
                break
    assert best >= 475
