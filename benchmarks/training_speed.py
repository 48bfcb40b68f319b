"""Training against training: our default run and Stable-Baselines3 PPO on grid2op, in turns.

    python benchmarks/training_speed.py

Everything counts on both sides: policy, environment, resets, updates; on ours the exchange between agents
too. A world step moves one world once and a decision sets all units of one world once, however many agents
share it.
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

# world steps a second that the power-grid project Tar-ive/tpu reports from a TPU v4
TPU_PROJECT_STEPS_PER_SECOND = 430.0


@dataclass(frozen=True)
class Options:
    """What to measure."""

    repeats: int = 5
    """Turns that each side takes."""
    rounds: int = 2
    """Rounds of ours in a turn."""
    rollouts: int = 1
    """Rollouts with their updates of the peer in a turn, 2,048 decisions each."""
    environments: int = 8
    """Copies of the world that the peer steps."""
    all_cores: bool = False
    """Let ours use the whole machine and compare wall time, instead of one core and CPU time."""
    peers: Path = DEFAULT_DIRECTORY
    """Where the peers' virtual environment is, or will be made."""


def our_trainer() -> Any:
    """The trainer of `dgfrl train power-grid` with nothing changed."""
    from dynamic_graph_fed_rl.experiment import build, default_experiment

    return build(default_experiment("power-grid")).trainer


def our_side(rounds: int) -> tuple[dict[str, Any], Callable[[], dict[str, float]]]:
    """Compile our training: what it is, and a function that measures `rounds` more rounds of it."""
    import jax

    trainer = our_trainer()
    worlds = trainer.groups[0].worlds
    spec = worlds.spec
    with Stopwatch() as compiling:
        training = trainer.init(jax.random.key(0))
        training, _ = jax.block_until_ready(trainer.run_round(training))
    # the first round after compiling still touches fresh memory
    training, _ = jax.block_until_ready(trainer.run_round(training))

    def measure() -> dict[str, float]:
        nonlocal training
        with Stopwatch() as stopwatch:
            for _ in range(rounds):
                training, metrics = trainer.run_round(training)
            jax.block_until_ready((training, metrics))
        steps = rounds * int(metrics["world_steps"])
        return rates(stopwatch, world_steps=steps, decisions=steps / spec.steps_per_decision)

    description = {
        "agents": trainer.agents,
        "worlds": worlds.copies,
        "steps_per_decision": spec.steps_per_decision,
        "decisions_per_round": worlds.copies * trainer.decisions_per_round,
        "compile_wall_seconds": compiling.wall_seconds,
        "compile_cpu_seconds": compiling.cpu_seconds,
    }
    return description, measure


def main(options: Options) -> None:
    core = None if options.all_cores else use_one_thread()
    second = "second" if options.all_cores else "cpu_second"
    noise = Noise()
    description, measure = our_side(options.rounds)
    arguments = ["--environments", str(options.environments), "--rollouts", str(options.rollouts)]
    with Peer("peer_sb3_grid2op.py", *arguments, directory=options.peers) as peer:
        samples = interleave({"ours": measure, "sb3": peer.measure}, options.repeats, noise)
    ours, theirs = samples["ours"], samples["sb3"]
    details = {
        "core": core,
        "ours": description,
        "ours_samples": ours,
        "peer": peer.description,
        "peer_samples": theirs,
    }
    clock = second.replace("_", " ").replace("cpu", "CPU")
    claims = [
        claim_from_repeats(
            f"training, {noun} per {clock} over SB3 PPO",
            ratios(ours, theirs, f"{name}_per_{second}"),
            unit="ratio",
            bar=bar,
            stretch=stretch,
            details=details,
        )
        for name, noun, bar, stretch in (
            ("world_steps", "world steps", 10.0, 50.0),
            ("decisions", "decisions", 3.0, 10.0),
        )
    ]
    claims.append(
        claim_from_repeats(
            "training, world steps by the clock on the wall",
            [sample["world_steps_per_second"] for sample in ours],
            unit="per second",
            bar=TPU_PROJECT_STEPS_PER_SECOND,
        )
    )
    for side, rows in (("ours", ours), ("SB3 PPO on grid2op", theirs)):
        for name, noun in (("world_steps", "world steps"), ("decisions", "decisions")):
            claims.append(
                claim_from_repeats(
                    f"{side}: {noun}",
                    [row[f"{name}_per_{second}"] for row in rows],
                    unit=f"per {clock}",
                )
            )
    where = "all cores" if options.all_cores else "one core"
    print_claims(f"Power grid: training speed, {where}", claims, noise)
    print(f"compiled in {description['compile_wall_seconds']:.1f} s, not part of the figures")
    print(f"written: {write_results('training_speed', claims, noise)}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
