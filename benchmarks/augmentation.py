"""What augmentation is worth when sensors fail: PPO on a small grid, with and without it.

Every training seed learns twice, without augmentation and with it, from the same start. Both are judged on held-out
days on which every node and every directed edge falls silent with probability p at every decision. The score is 0
for doing nothing and 100 for the best rule in use, which sees everything. Prints the table and writes
`results/augmentation.json`; no figure depends on time.
"""

from dataclasses import dataclass

import tyro
from measure import Claim, Stopwatch, print_claims, use_one_thread, write_results


@dataclass(frozen=True)
class Options:
    """What to train; the defaults are the published table."""

    case: str = "ieee30"
    """Grid, of two regions."""
    scenario: str = "peak"
    """Kind of day that is learned and judged."""
    seeds: int = 5
    """Training runs with and without."""
    rounds: int = 60
    """Rounds of learning."""
    days: int = 10
    """Held-out days that each run is judged by."""
    dropout: tuple[float, ...] = (0.0, 0.1, 0.3)
    """Probabilities that a sensor is silent at test time."""
    weight: float = 0.1
    """`augmentation_weight` of the runs with it."""
    probability: float = 0.1
    """`augmentation_probability` of the runs with it."""
    out: str = "augmentation"
    """Results are written to results/OUT.json."""


def scores(options: Options) -> dict[tuple[str, float], list[float]]:
    """Score of every training seed, without and with augmentation, at every probability of the test."""
    import jax

    from dynamic_graph_fed_rl.evaluation.dropped_sensors import DroppedSensors
    from dynamic_graph_fed_rl.evaluation.evaluate import TRAINING_STREAM, evaluation_keys, run_episodes, stream_key
    from dynamic_graph_fed_rl.evaluation.statistics import POLICY, score
    from dynamic_graph_fed_rl.experiment import build, default_experiment

    arms = {
        "without": {},
        "with": {
            "augmentation_weight": options.weight,
            "augmentation_probability": options.probability,
            "critical_edge": "loading",
        },
    }
    fields = {"case": options.case, "agents": 2, "scenarios": (options.scenario,), "rounds": options.rounds}
    built = {name: build(default_experiment("power-grid", **fields, **arm)) for name, arm in arms.items()}
    domain, keys = built["without"].domain, evaluation_keys(0, options.days)
    environment = domain.scenarios[options.scenario]
    headline = environment.spec.headline
    baselines = {
        name: run_episodes(make(environment), environment, domain.owners, keys)[headline]
        for name, make in domain.baselines.items()
        if name not in domain.references
    }
    found: dict[tuple[str, float], list[float]] = {(arm, p): [] for p in options.dropout for arm in arms}
    for seed in range(options.seeds):
        for arm, one in built.items():
            with Stopwatch() as stopwatch:
                training = one.trainer.init(stream_key(TRAINING_STREAM, seed))
                for _ in range(options.rounds):
                    training, _ = one.trainer.run_round(training)
                jax.block_until_ready(training)
            policy = one.policy(training)
            for p in options.dropout:
                episodes = run_episodes(DroppedSensors(policy, p), environment, domain.owners, keys)
                costs = baselines | {POLICY: episodes[headline]}
                value = score(costs, worst=domain.idle, exclude=(POLICY, *domain.references))[POLICY]
                if value is None:
                    raise ValueError(
                        f"scenario {options.scenario}: no score; the rules in use do not beat doing nothing"
                    )
                found[arm, p].append(value)
            latest = ", ".join(f"{found[arm, p][-1]:.1f} at {p}" for p in options.dropout)
            print(f"seed {seed} {arm}: {latest}; trained in {stopwatch.cpu_seconds:.0f} CPU s", flush=True)
    return found


def main(options: Options) -> None:
    use_one_thread()
    from dynamic_graph_fed_rl.evaluation.statistics import paired_difference, summarise

    found, claims = scores(options), []
    for p in options.dropout:
        rows = {f"{arm} augmentation": summarise(found[arm, p]) for arm in ("without", "with")}
        rows["gain, paired by training seed"] = paired_difference(found["with", p], found["without", p])
        claims += [
            Claim(
                claim=f"p = {p}, {name}",
                value=row["iqm"],
                low=row["low"],
                high=row["high"],
                unit="score",
                interval="bootstrap over training seeds, 95 %",
                seeds=tuple(range(options.seeds)),
                details={"scores": row["values"], "case": options.case, "scenario": options.scenario},
            )
            for name, row in rows.items()
        ]
    print_claims("Sensors silent with probability p at test time", claims)
    print(f"written: {write_results(options.out, claims)}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
