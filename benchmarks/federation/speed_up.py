"""How what each agent needs falls with the number of agents: all alike, each with its own CartPole, one server.

Theory promises a linear speed-up where the noise of gradients is what limits learning: K agents need a K-th each, a
slope of -1 between logarithms. The hyperparameters are those of part `fedpg`, the same for every K; their rounds of a
gradient step and 1,000 world steps an agent are also the resolution, and no K can do with fewer rounds than steps.
"""

import matplotlib
import numpy as np
from jaxtyping import Bool, Float
from learning_curves import Curves, learn
from measure import RESULTS

from dynamic_graph_fed_rl.experiment import default_experiment
from federation.fedpg import HYPERPARAMETERS, RESAMPLES
from federation.rows import BOOTSTRAP, Row

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

AGENTS = (1, 2, 4, 8, 16, 32)
SEEDS, THRESHOLD = 8, 400.0
WINDOW = 5
"""Evaluations, a round apart, whose mean has to reach the threshold."""
LONGEST = 150
"""Rounds after which a run is given up."""


def run(quick: bool, seeds: int | None) -> list[Row]:
    """Rows of part `speed-up`; draws `results/federation-speed-up.png`."""
    numbers, longest = range(seeds or (2 if quick else SEEDS)), 8 if quick else LONGEST
    agents = AGENTS[:2] if quick else AGENTS
    steps, spent, found = [], [], []
    for count in agents:
        curves = learn(
            default_experiment("cartpole", **(HYPERPARAMETERS | {"agents": count})),
            numbers,
            enough=lambda curves: curves.returns.shape[1] >= longest or bool(_when(curves)[1].all()),
        )
        column, reached = _when(curves)
        rows = np.arange(len(column))
        steps.append(curves.steps[rows, column])
        spent.append(curves.trajectories[rows, column])
        found.append(reached)
    measured = [
        row
        for unit, values in (("world steps", np.stack(steps)), ("trajectories", np.stack(spent)))
        for row in _rows(unit, agents, values, np.stack(found))
    ]
    if not quick:
        _draw(agents, np.stack(steps))
    return measured


def _when(curves: Curves) -> tuple[Float[np.ndarray, " seeds"], Bool[np.ndarray, " seeds"]]:
    """Column of the first `WINDOW` evaluations whose mean is at the threshold; the last one of a seed without."""
    length = curves.returns.shape[1]
    if length < WINDOW:
        return np.full(len(curves.returns), length - 1), np.zeros(len(curves.returns), bool)
    means = np.lib.stride_tricks.sliding_window_view(curves.returns, WINDOW, axis=1).mean(-1)
    good = means >= THRESHOLD
    return np.where(good.any(1), good.argmax(1), length - 1), good.any(1)


def _rows(
    unit: str,
    agents: tuple[int, ...],
    needed: Float[np.ndarray, "agents seeds"],
    found: Bool[np.ndarray, "agents seeds"],
) -> list[Row]:
    logarithms = np.log(needed)
    seeds = needed.shape[1]
    draws = np.random.default_rng(0).integers(seeds, size=(RESAMPLES, len(agents), seeds))
    # every number of agents has runs of its own: they are resampled apart
    means = np.take_along_axis(np.broadcast_to(logarithms, draws.shape), draws, axis=2).mean(2)
    sizes = np.log(np.asarray(agents))
    slopes = np.polyfit(sizes, means.T, 1)[0]
    rows = []
    for row, count in enumerate(agents):
        missing = int((~found[row]).sum())
        low, high = np.exp(np.percentile(means[:, row], (2.5, 97.5)))
        rows.append(
            Row(
                f"{unit} an agent until a return of {THRESHOLD:.0f}, {count} agents (geometric mean)",
                float(np.exp(logarithms[row].mean())),
                float(low),
                float(high),
                unit=unit,
                seeds=seeds,
                interval=BOOTSTRAP,
                note=f"{missing} seeds never reached it: the length of their run stands" if missing else "",
            )
        )
    low, high = np.percentile(slopes, (2.5, 97.5))
    rows.append(
        Row(
            f"slope of log {unit} an agent against log agents, {agents[0]} to {agents[-1]} (-1: linear speed-up)",
            float(np.polyfit(sizes, logarithms.mean(1), 1)[0]),
            float(low),
            float(high),
            seeds=seeds,
            interval=BOOTSTRAP,
            note="a round is a gradient step and 1,000 world steps an agent: a few are the least any K needs",
        )
    )
    return rows


def _draw(agents: tuple[int, ...], steps: Float[np.ndarray, "agents seeds"]) -> None:
    figure, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
    counts, centre = np.asarray(agents, float), np.exp(np.log(steps).mean(1))
    slope, offset = np.polyfit(np.log(counts), np.log(centre), 1)
    jitter = np.linspace(0.96, 1.04, steps.shape[1])
    axes.plot(np.outer(counts, jitter).ravel(), steps.ravel(), ".", color="0.6", label="one seed")
    axes.plot(counts, centre, "o-", label="geometric mean over seeds")
    axes.plot(counts, np.exp(offset) * counts**slope, "--", label=f"fitted slope {slope:.2f}")
    axes.plot(counts, centre[0] / counts, ":", color="black", label="linear speed-up (slope -1)")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="agents",
        ylabel=f"world steps an agent until a return of {THRESHOLD:.0f}",
        title="CartPole, one server, agents alike",
    )
    axes.set_xticks(counts, [str(count) for count in agents])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(RESULTS / "federation-speed-up.png", dpi=150)
    plt.close(figure)
