"""Federated policy gradient on CartPole, with and without attackers, in the setting of FedPG-BR.

Fan, Ma, Dai, Jing, Tan, Low: "Fault-Tolerant Federated Reinforcement Learning with Theoretical Guarantee" (NeurIPS
2021): a server and K = 1, 3 or 10 agents, each with its own CartPole of horizon 500; returns against trajectories an
agent. Any algorithm may be used: here REINFORCE, a gradient step a round of two worlds, and a server that aggregates.
Of all agents the trajectories that were started count, those under way included.

Hyperparameters are the same for every K, with and without attackers; they were chosen for K = 10 on seeds from 1,000
on, which no reported run uses. K = 1 is also tried with smaller learning rates, and reported at its best.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float
from learning_curves import Curves, at, learn

from dynamic_graph_fed_rl.experiment import default_experiment
from federation.rows import BOOTSTRAP, Row

HYPERPARAMETERS = {
    "algorithm": "reinforce",
    "worlds": 2,
    "decisions_per_round": 500,
    "width": 16,
    "discount": 0.999,
    "entropy_weight": 0.01,
    "learning_rate": 0.02,
    # the learning rate falls over so many: it is nearly 0 when runs end
    "rounds": 500,
}
SMALLER_RATES = (0.01, 0.005)
AGENTS = (1, 3, 10)
BYZANTINE, RULE = 3, "multi-krum"
ATTACKS = ("noise", "random-action", "sign-flip")

SEEDS, THRESHOLD = 10, 475.0
LONGEST = 1000
"""Trajectories an agent after which a run is given up."""
COMPARED = (900, 1000)
"""Trajectories an agent between which runs with and without attackers are compared: the end of the publication's
claim. Evaluations of single policies swing, so that a mean over some of them is taken."""
EARLY = (200, 250)
"""The same, where learning has barely ended: reported beside it, and all that the plain mean is run for."""
HOLD = 20
"""Trajectories an agent for which the mean return has to stay above the threshold."""
RESAMPLES = 2000


def run(quick: bool, seeds: int | None) -> list[Row]:
    """Rows of part `fedpg`."""
    count = seeds or (2 if quick else SEEDS)
    longest, early, compared = (60, (30, 40), (40, 60)) if quick else (LONGEST, EARLY, COMPARED)
    numbers = range(count)

    def alone(**fields) -> Curves:
        return _learn(numbers, partial(_decided, early[1], longest), **fields)

    curves = {agents: alone(agents=agents) for agents in AGENTS[:-1]}
    curves[10] = _learn(numbers, partial(_spent, compared[1]), agents=10)
    rows = [
        _needs(f"K = {agents}", curves[agents], longest, bar=1000.0 if agents == 10 and not quick else None)
        for agents in AGENTS
    ]
    rows.append(_ratio("K = 10 over K = 1, same hyperparameters", curves[10], curves[1], longest, 0.5, 0.2))
    if not quick:
        slower = [alone(agents=1, learning_rate=rate) for rate in SMALLER_RATES]
        tuned = min([curves[1], *slower], key=lambda one: _needed(_grid(one, longest).mean(0)))
        rows.append(_needs("K = 1 at its own best learning rate", tuned, longest))
        rows.append(_ratio("K = 10 over K = 1 at its own best learning rate", curves[10], tuned, longest, None, None))
    rows += [_return(curves[10], window) for window in (early, compared)]
    for rule in (RULE, "mean"):
        windows = (compared, early) if rule == RULE else (early,)
        for attack in ATTACKS:
            attacked = _learn(
                numbers if rule == RULE else numbers[: max(2, count // 2)],
                partial(_spent, windows[0][1]),
                agents=10,
                byzantine=BYZANTINE,
                attack=attack,
                aggregator=rule,
            )
            claim = f"return under {attack} by {BYZANTINE} of 10 over that without attack, {rule}"
            rows += [
                _share(claim, attacked, curves[10], window, bar=0.95 if window == COMPARED else None)
                for window in windows
            ]
    return rows


def _learn(seeds: Sequence[int], enough, **fields) -> Curves:
    return learn(default_experiment("cartpole", **(HYPERPARAMETERS | fields)), seeds, enough=enough)


def _spent(trajectories: float, curves: Curves) -> bool:
    return bool(curves.trajectories[:, -1].min() >= trajectories)


def _decided(least: float, longest: float, curves: Curves) -> bool:
    """Whether all seeds have gone so far that the mean curve says what they need."""
    spent = curves.trajectories[:, -1].min()
    if spent >= longest:
        return True
    return bool(spent >= least and _needed(_grid(curves, int(spent)).mean(0)) <= spent)


def _grid(curves: Curves, longest: int) -> Float[np.ndarray, "seeds trajectories"]:
    """Return of each seed after 1, 2, ... trajectories an agent; 0 before its first evaluation."""
    last = min(longest, int(curves.trajectories[:, -1].min()))
    return np.nan_to_num(np.stack([at(curves, spent) for spent in range(1, last + 1)], axis=1))


def _needed(mean: Float[np.ndarray, "*resamples trajectories"]) -> Float[np.ndarray, "*resamples"]:
    """Trajectories an agent until the curve has been at the threshold for `HOLD` of them; all of them if never."""
    length = mean.shape[-1]
    if length <= HOLD:
        return np.full(mean.shape[:-1], float(length))
    held = np.lib.stride_tricks.sliding_window_view(mean >= THRESHOLD, HOLD, axis=-1).all(-1)
    return np.where(held.any(-1), held.argmax(-1) + 1.0, length + 1.0)


def _resampled(curves: Curves, longest: int, first: int) -> Float[np.ndarray, " resamples"]:
    """What bootstrap samples of the seeds need."""
    grid = _grid(curves, longest)
    draws = np.random.default_rng(first).integers(len(grid), size=(RESAMPLES, len(grid)))
    return _needed(np.stack([grid[draw].mean(0) for draw in draws]))


def _needs(name: str, curves: Curves, longest: int, bar: float | None = None) -> Row:
    grid = _grid(curves, longest)
    needed, samples = float(_needed(grid.mean(0))), _resampled(curves, longest, 0)
    end = "" if needed <= grid.shape[1] else "; never reached: the length of the run stands here"
    return Row(
        f"{name}: trajectories an agent until the mean return is {THRESHOLD:.0f}",
        needed,
        *map(float, np.percentile(samples, (2.5, 97.5))),
        bar=bar,
        direction="at most",
        unit="trajectories",
        seeds=len(grid),
        interval=BOOTSTRAP,
        note=f"mean over seeds, held for {HOLD} trajectories; mean return after {grid.shape[1]}: "
        f"{grid[:, -1].mean():.0f}, least over seeds {grid[:, -1].min():.0f}{end}",
        source="published (read from a plot): K = 10 at about 490 to 500 from 1,000 on, K = 1 at 400 after 2,000",
    )


def _ratio(claim: str, many: Curves, one: Curves, longest: int, bar: float | None, stretch: float | None) -> Row:
    value = float(_needed(_grid(many, longest).mean(0)) / _needed(_grid(one, longest).mean(0)))
    samples = _resampled(many, longest, 0) / _resampled(one, longest, 1)
    return Row(
        f"trajectories an agent until {THRESHOLD:.0f}: {claim}",
        value,
        *map(float, np.percentile(samples, (2.5, 97.5))),
        bar=bar,
        stretch=stretch,
        direction="at most",
        seeds=len(many.returns),
        interval=BOOTSTRAP,
        note="where a run never reached it, its length stands for what it needs",
    )


def _late(curves: Curves, window: tuple[int, int]) -> Float[np.ndarray, " seeds"]:
    """Mean return of each seed between two numbers of trajectories."""
    return _grid(curves, window[1])[:, window[0] - 1 :].mean(1)


def _return(curves: Curves, window: tuple[int, int]) -> Row:
    values = _late(curves, window)
    low, high = np.percentile(_means(values, 0), (2.5, 97.5))
    claim = f"return between {window[0]} and {window[1]} trajectories an agent, K = 10, no attack"
    return Row(claim, float(values.mean()), float(low), float(high), seeds=len(values), interval=BOOTSTRAP)


def _share(claim: str, curves: Curves, unattacked: Curves, window: tuple[int, int], bar: float | None) -> Row:
    late, grid = _late(curves, window), _grid(curves, window[1])
    # the same seeds on both sides
    reference = _late(unattacked, window)[: len(late)]
    needed = float(_needed(grid.mean(0)))
    reached = f"{THRESHOLD:.0f} after {needed:.0f}" if needed <= grid.shape[1] else f"{THRESHOLD:.0f} not reached"
    low, high = np.percentile(_means(late, 1) / _means(reference, 0), (2.5, 97.5))
    return Row(
        f"{claim}, {window[0]} to {window[1]} trajectories an agent",
        float(late.mean() / reference.mean()),
        float(low),
        float(high),
        bar=bar,
        seeds=len(late),
        interval=BOOTSTRAP,
        note=f"return {late.mean():.0f}, without attack {reference.mean():.0f}; {reached}",
    )


def _means(values: Float[np.ndarray, " seeds"], first: int) -> Float[np.ndarray, " resamples"]:
    draws = np.random.default_rng(first).integers(len(values), size=(RESAMPLES, len(values)))
    return values[draws].mean(1)
