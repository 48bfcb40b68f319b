"""Gradient steps a second of GraphSAC: 20 agents stacked (`vmap`, or one after the other), and 20 single runs.

`python benchmarks/stacked_agents.py [--repeats N]` measures learning alone, on samples of a replay, and writes
`results/stacked_agents.json`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import tyro
from measure import (
    Noise,
    Stopwatch,
    claim_from_repeats,
    interleave,
    print_claims,
    rates,
    ratios,
    use_one_thread,
    write_results,
)

use_one_thread()

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from dynamic_graph_fed_rl.experiment import build, default_experiment  # noqa: E402
from dynamic_graph_fed_rl.training.rollout import collect, over_agents, start  # noqa: E402

AGENTS = 20
SIZES = {
    "pendulum": {"updates": 4, "warm_up": 512, "replay": 512},
    "power-grid": {"case": "ieee14", "updates": 4, "worlds": 8, "warm_up": 512, "replay": 512},
}


@dataclass(frozen=True)
class Options:
    """How often to measure."""

    repeats: int = 3
    """Interleaved repeats."""


def main(options: Options) -> None:
    noise, claims = Noise(), []
    for environment, fields in SIZES.items():
        sides = prepare(environment, fields)
        samples = interleave(sides, options.repeats, noise)
        for name, runs in samples.items():
            speed = [run["updates_per_cpu_second"] for run in runs]
            claims.append(claim_from_repeats(f"{environment}: {name}", speed, "gradient steps / CPU s"))
        for name in ("vmap", "map"):
            ratio = ratios(samples[name], samples["single runs"], "updates_per_cpu_second")
            claims.append(claim_from_repeats(f"{environment}: {name} over single runs", ratio, "ratio"))
    print_claims(f"{AGENTS} GraphSAC agents", claims, noise)
    write_results("stacked_agents", claims, noise)


def prepare(environment: str, fields: dict) -> dict[str, Callable[[], dict[str, float]]]:
    """One round of learning of 20 agents, three ways, on the same samples."""
    experiment = default_experiment(environment, algorithm="sac", agents=1, federation="independent", **fields)
    group = build(experiment).trainer.groups[0]
    algorithm, key = group.algorithm, jax.random.key(0)
    one = algorithm.init(key, group.worlds.spec, group.worlds.copies)
    learners = jax.tree.map(lambda leaf: leaf[None], one)
    actors = start(key, algorithm, group.worlds, learners)
    recall = eqx.filter_jit(lambda *given: jax.vmap(algorithm.recall)(*given))
    lesson, stored = None, 0
    while stored < experiment.learning.warm_up:
        key, act_key, recall_key = jax.random.split(key, 3)
        actors, experience, _ = eqx.filter_jit(collect)(
            act_key, algorithm, group.worlds, learners, actors, experiment.decisions_per_round
        )
        learners, lesson = recall(recall_key[None], learners, experience)
        stored += experiment.decisions_per_round * experiment.worlds
    keys = jax.random.split(key, AGENTS)
    stack = lambda tree: jax.tree.map(lambda leaf: jnp.repeat(leaf, AGENTS, axis=0), tree)  # noqa: E731
    many, lessons = stack(learners), stack(lesson)
    single, first_lesson = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (learners, lesson))
    alone = eqx.filter_jit(algorithm.learn)

    def one_by_one() -> object:
        return [alone(agent_key, single, first_lesson) for agent_key in keys]

    def together(how) -> Callable[[], object]:
        learn = eqx.filter_jit(lambda *given: over_agents(algorithm.learn, how)(*given))
        return lambda: learn(keys, many, lessons)

    ways = {"single runs": one_by_one, "vmap": together("vmap"), "map": together("map")}
    return {name: timed(way, AGENTS * experiment.learning.updates) for name, way in ways.items()}


def timed(work: Callable[[], object], updates: int) -> Callable[[], dict[str, float]]:
    jax.block_until_ready(work())

    def measure() -> dict[str, float]:
        with Stopwatch() as stopwatch:
            jax.block_until_ready(work())
        return rates(stopwatch, updates=updates)

    return measure


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
