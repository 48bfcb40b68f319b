"""How many rounds of learning agents of unlike speed finish in a unit of virtual time, through the trainer itself.

Asynchronous agents finish sum(1 / t_i) a tick, synchronous ones wait for the slowest: A / max(t_i).
"""

from fractions import Fraction

import jax
import numpy as np

from dynamic_graph_fed_rl.experiment import build, default_experiment
from federation.rows import Row

# whole periods of the slowest are counted: over these ticks both laws are whole numbers of rounds
TICKS = 12
FIXED = (1, 1, 1, 4)
# divisors of TICKS that agents may need for a round of learning
STEP_TIMES = (1, 2, 3, 4, 6, 12)
CASES = 4
TINY = {"worlds": 1, "minibatches": 1, "epochs": 1, "decisions_per_round": 1, "width": 2, "layers": 1}


def run(quick: bool, seeds: int | None) -> list[Row]:
    """Rows of part `time-law`; `seeds` is the number of random draws of step times beside 1, 1, 1, 4."""
    draws = np.random.default_rng(0)
    cases = [FIXED]
    cases += [tuple(draws.choice(STEP_TIMES, len(FIXED)).tolist()) for _ in range(1 if quick else seeds or CASES)]
    rows = []
    for schedule in ("asynchronous", "synchronous"):
        wrong = []
        for times in cases:
            counted = Fraction(_finished(schedule, times), TICKS)
            alone = sum(Fraction(1, t) for t in times)
            lawful = alone if schedule == "asynchronous" else Fraction(len(times), max(times))
            if counted != lawful:
                wrong.append(f"{times}: {counted} instead of {lawful}")
            if times == FIXED:
                rows.append(
                    Row(
                        f"{schedule}, step times {', '.join(map(str, times))}: rounds of learning a tick",
                        float(counted),
                        bar=float(lawful),
                        note=f"the law says {lawful}; {TICKS} rounds of Trainer.run_round, counting active agents",
                    )
                )
        rows.append(
            Row(
                f"{schedule}: draws of step times that miss the law",
                len(wrong),
                bar=0,
                direction="at most",
                seeds=len(cases),
                note="; ".join(wrong) or f"exact in whole numbers for {'; '.join(map(str, cases))}",
            )
        )
    ratio = rows[0].value / rows[2].value
    rows.append(Row("asynchronous over synchronous, step times 1, 1, 1, 4", ratio, unit="x"))
    return rows


def _finished(schedule: str, times: tuple[int, ...]) -> int:
    """Rounds of learning that all agents together finish in `TICKS` rounds of training."""
    experiment = default_experiment(
        "cartpole", agents=len(times), schedule=schedule, step_times=tuple(map(float, times)), rounds=TICKS, **TINY
    )
    trainer = build(experiment).trainer
    training, finished = trainer.init(jax.random.key(0)), 0
    for _ in range(TICKS):
        training, metrics = trainer.run_round(training)
        finished += int(metrics["federation"]["active"])
    return finished
