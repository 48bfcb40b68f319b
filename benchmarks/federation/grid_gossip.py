"""Asynchronous gossip on the power grid against its synchronous server, at equal world steps."""

import numpy as np

from dynamic_graph_fed_rl.evaluation.evaluate import TRAINING_STREAM, stream_key
from dynamic_graph_fed_rl.experiment import build, default_experiment
from federation.grid_scores import Judge, trained
from federation.rows import Row, row_from_seeds

SERVER = {"federation": "server"}
# agent 3 is half as fast; a fifth of the agents is away in any round, for two rounds on average; every agent
# hears its two neighbours on a ring
GOSSIP = {
    "federation": "gossip",
    "overlay": "ring",
    "schedule": "asynchronous",
    "step_times": (1.0, 1.0, 1.0, 2.0),
    "dropout": 0.2,
    "absence_rounds": 2.0,
    "codec": "int8",
}
ROUNDS, DAYS, SEEDS = 40, 10, 5


def run(quick: bool, seeds: int | None) -> list[Row]:
    case = {"case": "ieee14"} if quick else {}
    rounds, days, seeds = (2, 2, 1) if quick else (ROUNDS, DAYS, seeds or SEEDS)
    sides = {"server": SERVER, "gossip": GOSSIP}
    scores: dict[str, list[float]] = {side: [] for side in sides}
    sent: dict[str, list[float]] = {side: [] for side in sides}
    judge = None
    for side, settings in sides.items():
        built = build(default_experiment("power-grid", rounds=rounds, **case, **settings))
        # both sides are judged in the same environment
        judge = judge or Judge(built.domain, days)
        for seed in range(seeds):
            training, traffic = trained(built.trainer, stream_key(TRAINING_STREAM, seed), rounds)
            found = judge.scores(built.policy(training))
            scores[side].append(float(np.mean(list(found.values()))))
            sent[side].append(traffic)
            print(f"  {side}, seed {seed}: {', '.join(f'{name} {value:.1f}' for name, value in found.items())}")
    setting = (
        f"{rounds} rounds; score averaged over normal, peak and outages on {days} held-out days; ring of 4, one "
        "agent half as fast, 20 % absent for two rounds on average"
    )
    return [
        row_from_seeds("synchronous server, float32: score", scores["server"], note=setting),
        row_from_seeds("asynchronous gossip, int8: score", scores["gossip"]),
        row_from_seeds(
            "asynchronous gossip, int8, less the server: points of score",
            np.subtract(scores["gossip"], scores["server"]).tolist(),
            bar=-5.0,
            stretch=0.0,
            decided_by="interval",
        ),
        row_from_seeds(
            "its bytes over the server's, both directions",
            np.divide(sent["gossip"], sent["server"]).tolist(),
            bar=0.5,
            direction="at most",
        ),
    ]
