"""Environment against environment: world steps per CPU second on a 118-bus grid, ours and grid2op's.

    python benchmarks/power_env_speed.py

Both sides solve AC power flow, take outages, pay a reward and build an observation, in turns, on one core
and one thread, doing nothing. Ours gives an observation and a reward at every decision, which is five world
steps by default; grid2op gives them at every step, so ours is measured that way too.
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
from peers import DEFAULT_DIRECTORY, Peer

BAR, STRETCH = 25.0, 50.0
RATE = "world_steps_per_cpu_second"
# decisions in one compiled call: long enough that starting the call costs nothing
DECISIONS_A_CALL = 24


@dataclass(frozen=True)
class Options:
    """What to measure."""

    worlds: tuple[int, ...] = (64, 256)
    """Copies of the world that step together."""
    steps_per_decision: tuple[int, ...] = (5, 1)
    """World steps between two observations."""
    repeats: int = 7
    """Turns that each side takes."""
    seconds: float = 1.0
    """CPU seconds of one of our measurements, about."""
    peers: Path = DEFAULT_DIRECTORY
    """Where the peers' virtual environment is, or will be made."""


def our_worlds(copies: int, steps_per_decision: int) -> Any:
    """Worlds of the default grid in which lines fail and come back, with episodes of four hours."""
    from dynamic_graph_fed_rl.experiment import build, default_experiment

    experiment = default_experiment(
        "power-grid",
        scenarios=("outages",),
        worlds=copies,
        decision_interval=steps_per_decision,
        training_decisions=240 // steps_per_decision,
    )
    return build(experiment).trainer.groups[0].worlds


def our_side(
    copies: int, steps_per_decision: int, seconds: float
) -> tuple[dict[str, Any], Callable[[], dict[str, float]]]:
    """Compile our worlds: what they are, and a function that measures them once."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    worlds = our_worlds(copies, steps_per_decision)
    spec = worlds.spec
    if spec.steps_per_decision != steps_per_decision:
        raise ValueError(f"worlds run {spec.steps_per_decision} steps a decision, not {steps_per_decision}")
    do_nothing = jnp.zeros((worlds.agents, copies, spec.slots, spec.action_size))

    @eqx.filter_jit
    def run(worlds: Any, key: Any, state: Any, observation: Any) -> Any:
        # the observation rides in the carry and reward and cost in the output: none may be optimised away
        def decide(carry: Any, key: Any) -> Any:
            state, observation, transition = worlds.step(key, carry[0], do_nothing)
            ended = transition.terminated | transition.truncated
            return (state, observation), (transition.reward, transition.cost, ended)

        keys = jax.random.split(key, DECISIONS_A_CALL + 1)
        (state, observation), outcome = jax.lax.scan(decide, (state, observation), keys[1:])
        return keys[0], state, observation, outcome

    reset = eqx.filter_jit(lambda worlds, key: worlds.reset(key))
    key = jax.random.key(0)
    with Stopwatch() as compiling:
        carry = (key, *jax.block_until_ready(reset(worlds, key)))
        *carry, _ = jax.block_until_ready(run(worlds, *carry))
    with Stopwatch() as one_call:
        *carry, _ = jax.block_until_ready(run(worlds, *carry))
    calls = max(1, round(seconds / one_call.cpu_seconds))

    def measure() -> dict[str, float]:
        nonlocal carry
        with Stopwatch() as stopwatch:
            for _ in range(calls):
                *carry, outcome = run(worlds, *carry)
            jax.block_until_ready(carry)
        reward, cost, _ = outcome
        if not bool(jnp.isfinite(reward).all() & jnp.isfinite(cost).all()):
            raise FloatingPointError("our worlds returned a reward or a cost that is not finite")
        steps = calls * DECISIONS_A_CALL * copies * spec.steps_per_decision
        return rates(stopwatch, world_steps=steps) | {"reward_mean": float(reward.mean())}

    description = {
        "worlds": copies,
        "steps_per_decision": spec.steps_per_decision,
        "compile_wall_seconds": compiling.wall_seconds,
        "compile_cpu_seconds": compiling.cpu_seconds,
        "observation_numbers": sum(leaf.size for leaf in jax.tree.leaves(carry[2])) // copies,
    }
    return description, measure


def label(copies: int, steps_per_decision: int) -> str:
    seen = "step" if steps_per_decision == 1 else f"{steps_per_decision} steps"
    return f"{copies} worlds, observed every {seen}"


def main(options: Options) -> None:
    core = use_one_thread()
    noise = Noise()
    prepared = {
        label(copies, steps): our_side(copies, steps, options.seconds)
        for steps in options.steps_per_decision
        for copies in options.worlds
    }
    with Peer("peer_grid2op_speed.py", directory=options.peers) as peer:
        sides = {"grid2op": peer.measure} | {name: measure for name, (_, measure) in prepared.items()}
        samples = interleave(sides, options.repeats, noise)
        claims = []
        for name, (description, _) in prepared.items():
            claims.append(
                claim_from_repeats(
                    f"over grid2op + lightsim2grid: {name}",
                    ratios(samples[name], samples["grid2op"], RATE),
                    unit="ratio",
                    bar=BAR,
                    stretch=STRETCH,
                    details={
                        "core": core,
                        "ours": description,
                        "ours_samples": samples[name],
                        "peer": peer.description,
                        "peer_samples": samples["grid2op"],
                    },
                )
            )
            claims.append(
                claim_from_repeats(
                    f"ours: {name}",
                    [sample[RATE] for sample in samples[name]],
                    unit="steps per CPU second",
                    details=description,
                )
            )
        claims.append(
            claim_from_repeats(
                "grid2op + lightsim2grid, do-nothing, observed every step",
                [sample[RATE] for sample in samples["grid2op"]],
                unit="steps per CPU second",
                details=peer.description,
            )
        )
    print_claims("Power grid: environment speed, IEEE 118, AC, one core", claims, noise)
    for name, (description, _) in prepared.items():
        seconds = description["compile_wall_seconds"]
        print(f"{name}: compiled in {seconds:.1f} s, not part of the figures")
    print(f"written: {write_results('power_env_speed', claims, noise)}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
