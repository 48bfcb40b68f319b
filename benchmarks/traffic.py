"""Traffic signals: policies trained in the dynamics alone, run unchanged in SUMO beside the rules in use.

`dgfrl benchmark traffic [PART ...]` prints the table and writes `results/traffic.json`. Runs that are in the log
already are not run again.

transfer    trained on each network, judged on the same one: delay over that of the best rule
federation  districts of one network: a server, one centralised learner and independent ones at equal world steps; and
            the same policies on two networks that none of them was trained on
unseen      trained on three networks together, judged on a fourth
incidents   links that matter close for ten minutes in SUMO: excess delay of policies that see closures, of such that
            do not, and of the rules

On cologne3 cars lock each other on a crossing for ever now and then, under every controller; the other parts, and the
transfer once more, are judged there with crossings that SUMO unblocks after 30 s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from measure import RESULTS, Claim, print_claims, write_results
from run_log import RunLog

from dynamic_graph_fed_rl.environments.base import Controller
from dynamic_graph_fed_rl.environments.traffic.proof import InSumo
from dynamic_graph_fed_rl.evaluation.evaluate import TRAINING_STREAM, LearnedPolicy, stream_key
from dynamic_graph_fed_rl.evaluation.held_out import prove
from dynamic_graph_fed_rl.evaluation.statistics import POLICY, bootstrap_interval
from dynamic_graph_fed_rl.experiment import Built, build, default_experiment
from dynamic_graph_fed_rl.federation.build import build as build_federation
from dynamic_graph_fed_rl.federation.settings import FederationSettings
from dynamic_graph_fed_rl.training.trainer import Trainer, Training

DISTRICTS = {"cologne3": 3, "cologne8": 8, "ingolstadt7": 7, "grid4x4": 16}
"""Networks, and the districts that learn on each."""
# in SUMO the others lose to these on every network by far
RULES = ("fixed-time", "longest-queue", "max-pressure")
SHARED_CITY, OTHER_CITIES = "cologne8", ("cologne3", "ingolstadt7")
CLOSURES = {
    "ingolstadt7": (("201963537#1",),),
    "cologne8": (("28675510#4", "-186623965#16", "8716807#6"), ("8716807#6", "-297047307", "28675510#1")),
}
"""Sets of roads that close together, by their first edges: those that cost max pressure 10 % more delay or above."""
CLOSED_S = 900.0, 1500.0
UNBLOCK_S = {"cologne3": 30.0}
"""Networks where cars lock each other on a crossing for ever, under rules too, and how long they may."""
PARTS = ("transfer", "federation", "unseen", "incidents")


@dataclass(frozen=True)
class Options:
    """What to run."""

    parts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Parts by name: transfer, federation, unseen, incidents; none: all."""
    networks: tuple[str, ...] = tuple(DISTRICTS)
    """Those of the transfer and the incidents."""
    rounds: int | None = None
    """Of each training; default: that of `dgfrl train traffic`."""
    sumo_seeds: int = 10
    """Episodes of every controller in SUMO."""
    first_sumo_seed: int = 10
    """Seeds 0 to 9 were looked at while the defaults were chosen."""
    seed: int = 0
    """Of the training."""
    log: Path = RESULTS.parents[1] / "runs" / "traffic.jsonl"
    """Where each run is written as soon as it ends."""


def main(options: Options) -> None:
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        raise SystemExit(f"benchmark traffic: '{unknown[0]}': unknown; known: {', '.join(PARTS)}")
    claims: list[Claim] = []
    for part in options.parts or PARTS:
        claims += {"transfer": transfer, "federation": federation, "unseen": unseen, "incidents": incidents}[part](
            options
        )
    print_claims("Traffic signals in SUMO", claims)
    everything = not options.parts and set(options.networks) == set(DISTRICTS)
    print(f"written: {write_results('traffic', claims, in_part=not everything)}")


def transfer(options: Options) -> list[Claim]:
    claims = []
    for network in options.networks:
        row = logged(options, "transfer", network, partial(_transferred, options, network))
        claims += judged(f"{network}, trained on it", row[network], bar=1.05, stretch=0.95)
        if network in UNBLOCK_S:
            row = logged(options, "transfer, unblocked", network, partial(_transferred, options, network, True))
            claims += judged(f"{network}, trained on it, crossings unblocked", row[network])
    return claims


def _transferred(options: Options, network: str, unblock: bool = False) -> dict[str, Any]:
    built = unblocked(options, network) if unblock else built_for(options, network)
    return {network: in_sumo(options, built, built.policy(trained(built.trainer, options)))}


def federation(options: Options) -> list[Claim]:
    rows = {
        name: logged(options, "federation", name, partial(_federated, options, name))
        for name in ("server", "centralised", "independent")
    }
    compared = [("centralised", SHARED_CITY, 1.05)] + [("independent", city, 1.0) for city in OTHER_CITIES]
    claims = []
    for against, city, bar in compared:
        seen = "" if city == SHARED_CITY else ", which no district was trained on"
        words = f"{city}{seen}: delay of the districts under a server over that of {against}"
        ours, theirs = (delay(rows[name][city][POLICY]) for name in ("server", against))
        claims.append(ratio(words, ours, theirs, bar=bar))
    for name, row in rows.items():
        claims += judged(f"{SHARED_CITY}, {name} ({row['bytes'] / 2**20:.1f} MiB exchanged)", row[SHARED_CITY])
    return claims


def _federated(options: Options, name: str) -> dict[str, Any]:
    own = built_for(options, SHARED_CITY, name)
    sent: list[float] = []
    training = trained(own.trainer, options, sent)
    # one learner's parameters act for all districts of a network it has not seen; those of each in turn, where they
    # differ
    learners = training.learners[0]
    found: dict[str, Any] = {SHARED_CITY: in_sumo(options, own, own.policy(training)), "bytes": float(np.sum(sent))}
    count = own.trainer.agents if name == "independent" else 1
    for city in OTHER_CITIES:
        other = unblocked(options, city)
        each = [delay(in_sumo(options, other, everywhere(own, learners, i, other), ())[POLICY]) for i in range(count)]
        found[city] = {POLICY: {"delay": {"values": np.mean(each, axis=0).tolist()}}}
    return found


def unseen(options: Options) -> list[Claim]:
    *known, last = DISTRICTS
    row = logged(options, "unseen", last, partial(_unseen, options, known, last))
    claims = judged(f"{last}, trained on {', '.join(known)}", row[last], stretch=1.05)
    for network in known:
        claims += judged(f"{network}, trained on {', '.join(known)}", row[network])
    return claims


def _unseen(options: Options, known: Sequence[str], last: str) -> dict[str, Any]:
    cities = {name: unblocked(options, name) for name in known}
    groups = tuple(one.trainer.groups[0] for one in cities.values())
    agents = sum(group.worlds.agents for group in groups)
    first = next(iter(cities.values()))
    exchange = build_federation(FederationSettings(), "server", agents, first.experiment.rounds)
    trainer = Trainer(groups, exchange, first.experiment.decisions_per_round, first.experiment.agent_map)
    learners = trained(trainer, options).learners[0]
    cities[last] = unblocked(options, last)
    return {name: in_sumo(options, one, everywhere(first, learners, 0, one)) for name, one in cities.items()}


def incidents(options: Options) -> list[Claim]:
    claims = []
    for network in (name for name in CLOSURES if name in options.networks):
        seen, hidden = (
            logged(options, f"incidents, {how}", network, partial(_disturbed, options, network, how == "seen"))
            for how in ("seen", "hidden")
        )
        excess = {name: _excess(seen["sets"], name) for name in (POLICY, *RULES)}
        blind = _excess(hidden["sets"], POLICY)
        best = min(RULES, key=lambda name: excess[name].mean())
        details = {name: values.round(2).tolist() for name, values in excess.items()} | {"hidden": blind.tolist()}
        words = f"{network}, closures: excess delay over that of {best}"
        claims.append(ratio(words, excess[POLICY], excess[best], 0.85, 0.7, details))
        difference = excess[POLICY] - blind
        low, high = bootstrap_interval(difference, np.mean)
        words = f"{network}, closures: excess delay where they are seen, less where they are hidden"
        kind = "95 % bootstrap of the mean over closures and SUMO's seeds, paired"
        claims.append(Claim(words, float(difference.mean()), low, high, "s", kind))
        delays = {how: _delays(row["sets"], POLICY) for how, row in (("seen", seen), ("hidden", hidden))}
        for how, values in delays.items():
            words = f"{network}, policy to which closures are {how}: delay under them over that of {best}"
            claims.append(ratio(words, values, _delays(seen["sets"], best)))
    return claims


def _disturbed(options: Options, network: str, visible: bool) -> dict[str, Any]:
    """Trained on hours with and without incidents; each set of closures on SUMO's seeds, and none."""
    built = built_for(options, network, scenarios=("normal", "incidents"), closures_visible=visible)
    policy, simulator = built.policy(trained(built.trainer, options)), built.domain.simulator
    assert isinstance(simulator, InSumo)
    found = []
    for edges in ((), *CLOSURES[network]):
        closures = tuple((simulator.network.link_of_edge[edge], *CLOSED_S) for edge in edges)
        found.append(in_sumo(options, sumo_with(built, closures=closures), policy, RULES if visible else ()))
    return {"sets": found}


def _delays(sets: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Under each set of closures and on each seed."""
    return np.concatenate([delay(closed[name]) for closed in sets[1:]])


def _excess(sets: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.concatenate([delay(closed[name]) - delay(sets[0][name]) for closed in sets[1:]])


def built_for(options: Options, network: str, federation: str = "server", **fields: Any) -> Built:
    rounds = {} if options.rounds is None else {"rounds": options.rounds}
    common = {"network": network, "agents": DISTRICTS[network], "federation": federation, "seed": options.seed}
    return build(default_experiment("traffic", **common, **rounds, **fields))


def unblocked(options: Options, network: str) -> Built:
    """As it is judged in all but the transfer."""
    return sumo_with(built_for(options, network), unblock_s=UNBLOCK_S.get(network, -1.0))


def sumo_with(built: Built, **fields: Any) -> Built:
    """The same with other settings of SUMO."""
    simulator = built.domain.simulator
    assert isinstance(simulator, InSumo)
    changed = replace(simulator, settings=replace(simulator.settings, **fields))
    return replace(built, domain=replace(built.domain, simulator=changed))


def trained(trainer: Trainer, options: Options, sent: list[float] | None = None) -> Training:
    """All rounds of the default experiment; `sent` collects the bytes of each exchange."""
    rounds = options.rounds or default_experiment("traffic").rounds
    training = trainer.init(stream_key(TRAINING_STREAM, options.seed))
    for number in range(1, rounds + 1):
        training, metrics = trainer.run_round(training)
        if sent is not None:
            sent.append(float(metrics["federation"].get("bytes", 0.0)))
        if number % max(1, rounds // 5) == 0:
            print(f"  round {number}/{rounds}", flush=True)
    return training


def everywhere(trained_on: Built, learners: Any, agent: int, other: Built) -> LearnedPolicy:
    """One agent's learner at every district of another network."""
    import jax

    many = other.trainer.agents
    own = jax.tree.map(lambda leaf: leaf[np.full(many, agent)], learners)
    return LearnedPolicy(trained_on.trainer.groups[0].algorithm, own)


def in_sumo(options: Options, built: Built, policy: Controller, rules: tuple[str, ...] = RULES) -> dict[str, Any]:
    """Metrics of the policy and the rules on SUMO's seeds."""
    simulator = built.domain.simulator
    assert isinstance(simulator, InSumo)
    seeds = range(options.first_sumo_seed, options.first_sumo_seed + options.sumo_seeds)
    chosen = replace(simulator, rules={name: simulator.rules[name] for name in rules})
    return prove(built.domain, chosen, policy, seeds, lambda name, seed: None)[simulator.name]


def logged(options: Options, part: str, case: str, run: Any) -> dict[str, Any]:
    known = {
        "part": part,
        "case": case,
        "seed": options.seed,
        "first_sumo_seed": options.first_sumo_seed,
        "sumo_seeds": options.sumo_seeds,
    }
    return RunLog(options.log, tuple(known)).get(known, run)


def delay(metrics: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(metrics["delay"]["values"], float)


def judged(
    words: str, found: Mapping[str, Any], bar: float | None = None, stretch: float | None = None
) -> list[Claim]:
    """The policy's delay over that of the best rule, on the same seeds; and how many seeds gridlocked."""
    best = min(RULES, key=lambda name: delay(found[name]).mean())
    policy = found[POLICY]
    details = {name: delay(found[name]).round(2).tolist() for name in (POLICY, *RULES)}
    details["best rule"] = best
    claims = [ratio(f"{words}: delay over that of {best}", delay(policy), delay(found[best]), bar, stretch, details)]
    if bar is not None:
        stuck = float(np.sum(policy["gridlock"]["values"]))
        words = f"{words}: gridlocked seeds"
        claims.append(Claim(words, stuck, stuck, stuck, "seeds", "none; a count", 0.0, direction="at most"))
    return claims


def ratio(
    words: str,
    ours: np.ndarray,
    theirs: np.ndarray,
    bar: float | None = None,
    stretch: float | None = None,
    details: Mapping[str, Any] | None = None,
) -> Claim:
    each = ours / theirs
    low, high = bootstrap_interval(each, np.mean)
    return Claim(
        words,
        float(ours.mean() / theirs.mean()),
        low,
        high,
        "1",
        "95 % bootstrap of the mean over SUMO's seeds, paired",
        bar,
        stretch,
        direction="at most",
        details=details or {},
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
