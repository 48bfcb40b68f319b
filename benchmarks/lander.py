"""Federated LunarLander: what a client needs until it lands, by mode and number of clients; and a learner's speed.

`dgfrl benchmark lander [PART ...] [--quick]` runs the parts named, or all, prints the table and writes
`results/lander.json`, `results/lander.md` and `docs/images/lander.png`. Runs that are in the log already are not run
again, so that a benchmark that was cut off goes on where it was.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from measure import RESULTS, Claim, Noise, claim_from_repeats, interleave, print_claims, ratios, write_results
from peers import DEFAULT_DIRECTORY, LANDER_PINS, Peer

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "images" / "lander.png"
SPEED_DECISIONS = 2_000


@dataclass(frozen=True)
class Setting:
    """A mode with so many clients: fields of the experiment; bars of its episodes, steps and greedy return, which is
    judged, after 100,000 decisions, only where it has one: other runs end as soon as all clients are there."""

    fields: dict[str, Any]
    episodes: float | None = None
    steps: float | None = None
    greedy: float | None = None
    stretch: dict[str, float] = field(default_factory=dict)


_STRETCH = {"episodes": 140.0, "steps": 50_000.0, "greedy": 270.0}
MODES = {
    "shared-5": Setting({"federation": "shared", "agents": 5}, 180, 70_000, 240, _STRETCH),
    "hybrid-5": Setting({"federation": "hybrid", "agents": 5}, 180, 70_000, 240, _STRETCH),
    "server-5": Setting({"federation": "server", "agents": 5}, 190),
    "shared-3": Setting({"federation": "shared", "agents": 3}, 220),
    "hybrid-3": Setting({"federation": "hybrid", "agents": 3}, 220),
    "server-3": Setting({"federation": "server", "agents": 3}),
    "independent-1": Setting({"federation": "independent", "agents": 1}),
}
# one at a time, from hybrid-5
ABLATION = {
    "no layer normalisation": {"layer_norm": False},
    "1-step returns": {"steps": 1},
    "values in units of 10": {"value_scale": 10.0},
    "not double": {"double": False},
    "dueling": {"dueling": True},
    "exchange every 100": {"decisions_per_round": 100},
    "exchange every 2000": {"decisions_per_round": 2000},
    "trust": {"aggregator": "trust", "trust_alpha": 0.5},
    "screen mean-distance 0.15": {"screen": "mean-distance", "screen_threshold": 0.15},
    "screen nearest 0.02": {"screen": "nearest", "screen_threshold": 0.02},
}
PARTS = ("modes", "ablation", "speed")


@dataclass(frozen=True)
class Options:
    """What to run."""

    parts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Parts by name: modes, ablation, speed; none: all."""
    only: tuple[str, ...] = ()
    """Settings of modes or of the ablation by name; none: all."""
    seeds: int = 5
    """Runs of each mode."""
    ablation_seeds: int = 2
    """Runs of each line of the ablation, on the first of those seeds."""
    repeats: int = 7
    """Turns of each side of the measurement of speed."""
    quick: bool = False
    """Smoke run: one setting a part, 2,000 decisions of two clients; writes results/lander-quick.json only."""
    log: Path = HERE.parent / "runs" / "lander-benchmark.jsonl"
    """Where each run is written as soon as it ends."""
    peers: Path = DEFAULT_DIRECTORY.with_name("lander")
    """Where Stable-Baselines3's virtual environment is, or will be made."""


def main(options: Options) -> None:
    parts = options.parts or PARTS
    for given, known in ((parts, PARTS), (options.only, (*MODES, *ABLATION))):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise SystemExit(f"benchmark lander: '{unknown[0]}': unknown; known: {', '.join(known)}")
    if min(options.seeds, options.ablation_seeds, options.repeats) < 1:
        raise SystemExit("benchmark lander: seeds, ablation seeds and repeats must be at least 1")
    name = "lander-quick" if options.quick else "lander"
    if "speed" in parts:
        noise = Noise()
        report(name, "speed", speed(options, noise), noise)
    from lander_report import ablation_claims, draw, markdown, mode_claims, run_claims

    rows: dict[str, list[dict[str, Any]]] = {}
    if "modes" in parts:
        rows = runs(options, {name: setting.fields for name, setting in MODES.items()}, options.seeds)
        # a smoke run ends long before there is anything to judge
        claims = mode_claims(rows, MODES, None if options.quick else 100_000)
        report(name, "modes", claims + run_claims(rows))
        if not options.quick:
            draw(PICTURE, rows)
    if "ablation" in parts:
        changed = {name: MODES["hybrid-5"].fields | fields for name, fields in ABLATION.items()}
        compared = runs(options, changed, options.ablation_seeds)
        report(name, "ablation", ablation_claims(compared) + run_claims(compared))
        rows |= compared
    if rows and not options.quick:
        (RESULTS / "lander.md").write_text(markdown(rows))
        print(f"written: {RESULTS / 'lander.md'}, {PICTURE}")


def report(name: str, part: str, claims: list[Claim], noise: Noise | None = None) -> None:
    """Print the claims of a part and put them in the place of its former ones; those of other parts stay."""
    print_claims(f"Federated LunarLander: {part}", claims, noise)
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() else []
    write_results(name, claims, noise)
    rows = [row | {"part": part} for row in json.loads(path.read_text())]
    rows += [row for row in before if row["part"] != part]
    rows.sort(key=lambda row: PARTS.index(row["part"]))
    path.write_text(json.dumps(rows, indent=2, allow_nan=False) + "\n")
    print(f"written: {path}")


def runs(options: Options, settings: dict[str, dict[str, Any]], seeds: int) -> dict[str, list[dict[str, Any]]]:
    """The runs of each setting, a seed each."""
    from lander_runs import Variant, run_all

    chosen = {name: fields for name, fields in settings.items() if name in (options.only or settings)}
    if options.quick and not options.only:
        chosen = dict([next(iter(chosen.items()))])
    rows = {}
    for name, fields in chosen.items():
        if options.quick:
            fields = fields | {"agents": min(2, fields["agents"])}
        variant = Variant(name, fields, greedy=name in MODES and MODES[name].greedy is not None)
        log = options.log
        if options.quick:
            # a smoke run runs
            log = options.log.with_name("lander-quick.jsonl")
            log.unlink(missing_ok=True)
        rows[name] = run_all([variant], range(1 if options.quick else seeds), log, options.quick)
    return rows


def speed(options: Options, noise: Noise) -> list[Claim]:
    """Decisions a second of one learner in one world with a gradient step each, beside Stable-Baselines3's DQN.

    Neither side has layer normalisation, n-step returns or double values; both have a network of 64-64 with tanh,
    batches of 64, slow copies that follow by 0.005 at every step, and learn four times after every four decisions.
    """
    from measure import use_one_thread

    core = use_one_thread()
    sides = {"ours": ours(1), "ours, five clients": ours(5)}
    with Peer("peer_sb3_lander.py", directory=options.peers, pins=LANDER_PINS) as peer:
        samples = interleave(sides | {"sb3": peer.measure}, 1 if options.quick else options.repeats, noise)
    details = {"core": core, "sb3": peer.description, "samples": samples}
    rate = "decisions_per_cpu_second"
    claims = [
        claim_from_repeats(
            f"{side}: decisions with a gradient step each, a second, over Stable-Baselines3 DQN",
            ratios(samples[side], samples["sb3"], rate),
            unit="ratio",
            bar=bar,
            stretch=stretch,
            details=details if bar else {},
        )
        for side, bar, stretch in (("ours", 4.0, 10.0), ("ours, five clients", None, None))
    ]
    for side, rows in samples.items():
        claims.append(claim_from_repeats(f"{side}: decisions", [row[rate] for row in rows], unit="a CPU second"))
    return claims


def ours(clients: int) -> Any:
    """A function that measures rounds of so many clients, each of which learns by itself."""
    import jax
    from measure import Stopwatch, rates

    from dynamic_graph_fed_rl.experiment import build, default_experiment

    experiment = default_experiment(
        "lunar-lander", federation="independent", agents=clients, layer_norm=False, steps=1, double=False
    )
    trainer = build(experiment).trainer
    training = trainer.init(jax.random.key(0))
    # past the warm-up, and compiled
    for _ in range(3):
        training, _ = trainer.run_round(training)

    def measure() -> dict[str, float]:
        nonlocal training
        count = SPEED_DECISIONS // experiment.decisions_per_round
        with Stopwatch() as stopwatch:
            for _ in range(count):
                training, _ = trainer.run_round(training)
            jax.block_until_ready(training.round)
        return rates(stopwatch, decisions=count * experiment.decisions_per_round * clients)

    return measure


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
