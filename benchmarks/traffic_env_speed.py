"""Environment against environment: decisions per CPU second on cologne8, ours and sumo-rl's on libsumo.

    pip install -e '.[sumo]'                     ours reads the network from the installed sumo-rl
    python benchmarks/traffic_env_speed.py

Both sides set random phases, move all cars by five steps of a second, pay rewards and build observations, in turns,
on one core and one thread. Ours counts its resets, sumo-rl's are left out. A generated city of 500 signals is
measured beside them, for which there is no peer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from peers import SUMO_PINS, Peer

BAR, STRETCH = 100.0, 250.0
CITY_STRETCH = 1e6
RATE = "decisions_per_cpu_second"


@dataclass(frozen=True)
class Options:
    """What to measure."""

    worlds: tuple[int, ...] = (64, 128)
    """Copies of cologne8 that step together."""
    city_signals: int = 500
    """Of the generated city; 0 leaves it out."""
    city_worlds: int = 32
    """Copies of it."""
    repeats: int = 7
    """Turns that each side takes."""
    seconds: float = 2.0
    """CPU seconds of one of our measurements, about."""
    info: bool = False
    """sumo-rl with what it gathers for `info` at every decision."""
    peers: Path = Path("~/.cache/dynamic-graph-fed-rl/sumo-peer").expanduser()
    """Where sumo-rl's virtual environment is, or will be made."""


def our_side(
    copies: int, seconds: float, agents: int | None, **settings: Any
) -> tuple[dict[str, Any], Callable[[], dict[str, float]]]:
    """Compile worlds with these settings of traffic: what they are, and a function that measures them once."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from dynamic_graph_fed_rl.environments.traffic.build import build_traffic, load
    from dynamic_graph_fed_rl.environments.traffic.settings import TrafficSettings
    from dynamic_graph_fed_rl.environments.worlds import Worlds

    chosen = TrafficSettings(**settings)
    network, demand = load(chosen)
    worlds = Worlds(build_traffic(chosen, network, demand, agents or network.signals, training=True), copies)
    spec = worlds.spec
    shape = spec.agents, copies, spec.slots
    # compiled calls of about a quarter of a second
    decisions = max(1, 100 * 64 * 8 // (copies * network.signals))

    @eqx.filter_jit
    def run(worlds: Any, key: Any, state: Any, observation: Any) -> Any:
        # the observation rides in the carry and the reward in the output: none may be optimised away
        def decide(carry: Any, orders: Any) -> Any:
            state, observation, transition = worlds.step(orders[0], carry[0], orders[1])
            return (state, observation), (transition.reward, transition.info["metrics"])

        key, action_key, *keys = jax.random.split(key, decisions + 2)
        # drawn for all decisions at once, but within the time
        actions = jax.random.randint(action_key, (decisions, *shape), 0, spec.action_size)
        (state, observation), outcome = jax.lax.scan(decide, (state, observation), (jnp.stack(keys), actions))
        return key, state, observation, outcome

    reset = eqx.filter_jit(lambda worlds, key: worlds.reset(key))
    key = jax.random.key(0)
    with Stopwatch() as compiling:
        carry: Any = (key, *jax.block_until_ready(reset(worlds, key)))
        *carry, _ = jax.block_until_ready(run(worlds, *carry))
    # roads that have filled with cars
    for _ in range(max(1, 100 // decisions)):
        *carry, _ = run(worlds, *carry)
    jax.block_until_ready(carry)
    with Stopwatch() as one_call:
        *carry, _ = jax.block_until_ready(run(worlds, *carry))
    calls = max(1, round(seconds / one_call.cpu_seconds))

    def measure() -> dict[str, float]:
        nonlocal carry
        with Stopwatch() as stopwatch:
            for _ in range(calls):
                *carry, outcome = run(worlds, *carry)
            jax.block_until_ready(carry)
        reward, metrics = outcome
        if not float(abs(reward).max()) > 0 or not float(metrics["total_left"].sum()) > 0:
            raise RuntimeError("our worlds stand still: no car waits or none leaves")
        totals = rates(stopwatch, decisions=calls * decisions * copies)
        return totals | {
            "signal_steps_per_cpu_second": totals[RATE] * network.signals,
            "vehicles_mean": float(carry[1].traffic.vehicles.sum(-1).mean()),
        }

    description = {
        "network": network.name,
        "signals": network.signals,
        "agents": spec.agents,
        "worlds": copies,
        "dt_s": chosen.dt_s,
        "decision_s": chosen.decision_s,
        "compile_wall_seconds": compiling.wall_seconds,
        "compile_cpu_seconds": compiling.cpu_seconds,
        "observation_numbers": sum(leaf.size for leaf in jax.tree.leaves(carry[2])) // copies,
    }
    return description, measure


def main(options: Options) -> None:
    core = use_one_thread()
    noise = Noise()
    prepared = {
        f"cologne8, {copies} worlds": our_side(copies, options.seconds, None, network="cologne8")
        for copies in options.worlds
    }
    city = f"city of {options.city_signals} signals, {options.city_worlds} worlds"
    ours = dict(prepared)
    if options.city_signals:
        ours[city] = our_side(options.city_worlds, options.seconds, 20, network="city", signals=options.city_signals)
    claims = []
    with Peer(
        "peer_sumo_rl.py", *(["--info"] if options.info else []), directory=options.peers, pins=SUMO_PINS
    ) as peer:
        sides = {"sumo-rl": peer.measure} | {name: measure for name, (_, measure) in ours.items()}
        samples = interleave(sides, options.repeats, noise)
        for name, (description, _) in prepared.items():
            claims.append(
                claim_from_repeats(
                    f"over sumo-rl + libsumo: {name}",
                    ratios(samples[name], samples["sumo-rl"], RATE),
                    unit="ratio",
                    bar=BAR,
                    stretch=STRETCH,
                    details={
                        "core": core,
                        "ours": description,
                        "ours_samples": samples[name],
                        "peer": peer.description,
                        "peer_samples": samples["sumo-rl"],
                    },
                )
            )
        for name, (description, _) in ours.items():
            rate = [sample[RATE] for sample in samples[name]]
            claims.append(claim_from_repeats(f"ours: {name}", rate, "decisions per CPU second", details=description))
        claims.append(
            claim_from_repeats(
                "sumo-rl + libsumo, cologne8",
                [sample[RATE] for sample in samples["sumo-rl"]],
                "decisions per CPU second",
                details=peer.description,
            )
        )
    if options.city_signals:
        claims.append(
            claim_from_repeats(
                city,
                [sample["signal_steps_per_cpu_second"] for sample in samples[city]],
                "signals times decisions per CPU second",
                # there is no bar, only a stretch
                bar=CITY_STRETCH,
                details=ours[city][0] | {"samples": samples[city]},
            )
        )
    print_claims("Traffic: environment speed, steps of 1 s, decisions of 5 s, one core", claims, noise)
    for name, (description, _) in ours.items():
        print(f"{name}: compiled in {description['compile_wall_seconds']:.1f} s, not part of the figures")
    print(f"written: {write_results('traffic_env_speed', claims, noise)}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
