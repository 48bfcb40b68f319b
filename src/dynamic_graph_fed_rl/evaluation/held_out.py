"""The learned policy beside every baseline, on held-out seeds of every scenario."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from dynamic_graph_fed_rl.environments.base import Controller, Environment, Observation
from dynamic_graph_fed_rl.environments.domain import Domain
from dynamic_graph_fed_rl.environments.spec import Metric, Spec
from dynamic_graph_fed_rl.evaluation.evaluate import begin, decide, play, run_episodes
from dynamic_graph_fed_rl.evaluation.statistics import POLICY, summarise_scenario

LATENCY = Metric("decision_latency_seconds", "decision latency", "s")
_TIMED_SEEDS, _CALLS_A_SEED = 20, 5


def judged_by(spec: Spec) -> list[Metric]:
    """The environment's metrics, and how long a decision takes."""
    return [*spec.metrics, LATENCY]


def compare(
    domain: Domain,
    policy: Controller,
    scenarios: Mapping[str, Environment],
    keys: Key[Array, " seeds"],
    on_start: Callable[[str, str], None],
    stopping: Callable[[], bool],
) -> dict[str, Any]:
    """`evaluation` of `summary.json`: `{scenario: {controller: {metric: {iqm, low, high, values}}}}`.

    `on_start(scenario, controller)` is called before each. Where `stopping()`, the scenario at hand is left
    out and what is complete returned.
    """
    evaluation: dict[str, Any] = {}
    latency: dict[str, list[float]] = {}
    for scenario, environment in scenarios.items():
        controllers = {POLICY: policy} | {name: make(environment) for name, make in domain.baselines.items()}
        results: dict[str, dict[str, np.ndarray]] = {}
        for name, controller in controllers.items():
            if stopping():
                return evaluation
            on_start(scenario, name)
            episode = run_episodes(controller, environment, domain.owners, keys)
            results[name] = {metric: np.asarray(values) for metric, values in episode.items()}
            if name not in latency:
                latency[name] = decision_latency_s(controller, environment, domain.owners, keys)
            results[name][LATENCY.name] = np.resize(latency[name], len(keys))
        headline = next(one for one in environment.spec.metrics if one.name == environment.spec.headline)
        evaluation[scenario] = summarise_scenario(
            results,
            headline.name,
            worst=domain.idle,
            exclude=(POLICY, *domain.references),
            lower_is_better=headline.lower_is_better,
        )
    return evaluation


def episodes_of(
    domain: Domain, keys: Key[Array, " seeds"]
) -> Callable[[Controller, Environment], Iterator[tuple[PyTree, dict[str, Array]]]]:
    """What `Domain.illustrate` plays the evaluation's episodes again with."""
    return lambda controller, environment: play(controller, environment, domain.owners, keys)


def decision_latency_s(
    controller: Controller, environment: Environment, owners: int | None, keys: Key[Array, " seeds"]
) -> list[float]:
    """Seconds that a decision for one world takes: medians of 5 calls in the first state of each seed."""
    state, observation = begin(environment, owners, keys)

    def one_world(tree: PyTree, axis: int, world: int) -> PyTree:
        return jax.tree.map(lambda leaf: leaf.take(np.array([world]), axis=axis), tree)

    medians = []
    for world in range(min(len(keys), _TIMED_SEEDS)):
        alone = one_world(state, 0 if owners is None else 1, world)
        seen: Observation = one_world(observation, 1, world)
        memory = controller.initial_memory(alone, seen)
        seconds = []
        for call in range(_CALLS_A_SEED + (world == 0)):
            start = time.perf_counter()
            jax.block_until_ready(decide(controller, keys[0], memory, alone, seen))
            if world or call:  # the very first call compiles
                seconds.append(time.perf_counter() - start)
        medians.append(statistics.median(seconds))
    return medians
