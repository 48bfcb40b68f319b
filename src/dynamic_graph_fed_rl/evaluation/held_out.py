"""The learned policy beside every baseline, on held-out seeds of every scenario."""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from dynamic_graph_fed_rl.environments.base import Controller, Environment, Observation
from dynamic_graph_fed_rl.environments.domain import Domain, Simulator
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
        evaluation[scenario] = _summarised(domain, results, headline)
    return evaluation


def prove(
    domain: Domain,
    simulator: Simulator,
    policy: Controller,
    seeds: Sequence[int],
    on_done: Callable[[str, int], None],
) -> dict[str, Any]:
    """The same comparison in an independent simulator, as the scenario of its name; as many episodes at once as
    there are processors. `on_done(controller, seed)` is called after each.

    Raises:
        ValueError: an episode could not be played to its end.
    """
    controllers = simulator.controllers(policy)
    played: dict[str, dict[int, dict[str, float]]] = {name: {} for name in controllers}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = {pool.submit(play, seed): (name, seed) for seed in seeds for name, play in controllers.items()}
        try:
            for done in as_completed(waiting):
                name, seed = waiting[done]
                try:
                    played[name][seed] = done.result()
                except RuntimeError as error:
                    raise ValueError(f"{simulator.name}, {name}, seed {seed}: {error}") from error
                on_done(name, seed)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    results = {
        name: {metric.name: np.array([episodes[seed][metric.name] for seed in seeds]) for metric in simulator.metrics}
        for name, episodes in played.items()
    }
    headline = next(one for one in simulator.metrics if one.name == simulator.headline)
    return {simulator.name: _summarised(domain, results, headline)}


def _summarised(domain: Domain, results: Mapping[str, Mapping[str, np.ndarray]], headline: Metric) -> dict[str, Any]:
    return summarise_scenario(
        results,
        headline.name,
        worst=domain.idle,
        exclude=(POLICY, *domain.references),
        lower_is_better=headline.lower_is_better,
    )


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
