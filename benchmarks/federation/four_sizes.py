"""One graph network federated over utilities of four sizes, against each of them alone; unchanged on a fifth."""

import numpy as np

from dynamic_graph_fed_rl.evaluation.evaluate import TRAINING_STREAM, LearnedPolicy, stream_key
from dynamic_graph_fed_rl.experiment import Built, build, default_experiment
from dynamic_graph_fed_rl.federation.build import build as build_federation
from dynamic_graph_fed_rl.federation.settings import FederationSettings
from dynamic_graph_fed_rl.training.trainer import Trainer
from federation.grid_scores import Judge, trained
from federation.rows import Row, row_from_seeds

CASES = ("ieee14", "ieee30", "ieee57", "ieee118")
UNSEEN = "ieee300"
ROUNDS, DAYS, SEEDS, UNSEEN_DAYS = 60, 10, 5, 5


# the farms that the default share of renewables places on it are more than its lines can take from the first step on
UNSEEN_SETTINGS = {"renewable_share": 0.0}


def utility(case: str, rounds: int, **settings: float) -> Built:
    """One agent that dispatches the whole grid of one owner."""
    common = {"agents": 1, "federation": "centralised", "worlds": 16, "minibatches": 4, "rounds": rounds}
    return build(default_experiment("power-grid", case=case, **common, **settings))


def run(quick: bool, seeds: int | None) -> list[Row]:
    cases = CASES[:2] if quick else CASES
    unseen = "ieee57" if quick else UNSEEN
    rounds, days, seeds = (2, 2, 1) if quick else (ROUNDS, DAYS, seeds or SEEDS)
    utilities = {case: utility(case, rounds) for case in cases}
    judges = {case: Judge(one.domain, days) for case, one in utilities.items()}
    newcomer = utility(unseen, rounds, **UNSEEN_SETTINGS)
    newcomer_judge = Judge(newcomer.domain, 2 if quick else UNSEEN_DAYS)
    groups = tuple(one.trainer.groups[0] for one in utilities.values())
    scores: dict[str, dict[str, list[float]]] = {}
    first_sight: list[float] = []
    for side, federation in {"federated": "server", "alone": "independent"}.items():
        exchange = build_federation(FederationSettings(), federation, len(groups))
        trainer = Trainer(groups, exchange, 16, "vmap")
        scores[side] = {case: [] for case in cases}
        for seed in range(seeds):
            training, _ = trained(trainer, stream_key(TRAINING_STREAM, seed), rounds)
            for case, group, learners in zip(cases, groups, training.learners, strict=True):
                found = judges[case].scores(LearnedPolicy(group.algorithm, learners))
                scores[side][case].append(float(np.mean(list(found.values()))))
            print(f"  {side}, seed {seed}: {', '.join(f'{c} {v[-1]:.1f}' for c, v in scores[side].items())}")
            if side == "federated":
                policy = LearnedPolicy(newcomer.trainer.groups[0].algorithm, training.learners[0])
                first_sight.append(newcomer_judge.saving(policy))
                print(f"  federated, seed {seed}, unchanged on {unseen}: {first_sight[-1]:.2f} % below the best rule")
    setting = (
        f"{rounds} rounds of 16 decisions in 16 worlds a utility, the same for both sides; score averaged over the "
        f"scenarios that have one, {days} held-out days"
    )
    rows = []
    for case in cases:
        for side in scores:
            rows.append(row_from_seeds(f"{case} {side}: score", scores[side][case], note=setting))
            setting = ""
        difference = np.subtract(scores["federated"][case], scores["alone"][case]).tolist()
        rows.append(
            row_from_seeds(
                f"{case}, federated less alone: points of score", difference, bar=0.0, decided_by="interval"
            )
        )
    note = (
        "above 0 is better than the best rule, and every rule in use ends in blackouts on that grid; without "
        "renewables, whose default share it cannot carry"
    )
    rows.append(
        row_from_seeds(
            f"unchanged on {unseen}, never seen: operating cost below the best rule's",
            first_sight,
            unit="%",
            stretch=0.0,
            note=note,
        )
    )
    return rows
