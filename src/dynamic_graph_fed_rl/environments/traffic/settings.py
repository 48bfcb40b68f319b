"""What a user may set about traffic signals; no jax import, so that the command line stays quick."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrafficSettings:
    """Traffic signals of a city, one agent a district, cars as spatial queues."""

    network: str = "grid"
    """A generated one (grid, city), or one that the package sumo-rl carries: cologne1, cologne3, cologne8,
    ingolstadt1, ingolstadt7, ingolstadt21, grid4x4, arterial4x4."""
    net: str | None = None
    """A SUMO network instead (.net.xml, plain or .gz); needs `routes`."""
    routes: str | None = None
    """Demand of `net` (.rou.xml); trips and flows are routed by SUMO's duarouter."""
    begin_s: float | None = None
    """When the demand begins, as in the routes file [s]; default: begin of the .sumocfg beside it, else 0."""
    duration_s: float = 3600.0
    """Length of an evaluation episode."""
    signals: int = 16
    """Of a generated network."""
    load: float = 0.5
    """Of a generated network: share of its capacity that the demand takes at one of ten signals."""
    layout_seed: int = 0
    """Of a generated network."""
    scenarios: tuple[str, ...] = ("normal",)
    """Kinds of hour that training mixes and evaluation reports one by one: normal, rush_hour, incidents, capacity,
    sensor_failures, rolling_works, dark_signals, rush_hour_dynamics."""
    edge_failure_rate: float | None = None
    """Expected share of the links that are closed at a time; default: that of the scenario. Not for incidents and
    rolling_works, which have closures of their own."""
    time_varying_topology: bool = True
    """Whether links close and open again within an episode; otherwise what is closed stays so to its end."""
    uptake: float = 0.5
    """Share of drivers who know of a closure and turn off up to three links before it; the others find out at it."""
    closures_visible: bool = True
    """Whether agents see closed links."""
    radius: int = 1
    """Signals beyond its own district that an agent sees, in hops."""
    dt_s: float = 1.0
    """Length of a step; 5 for large cities, which is too coarse to compare with SUMO."""
    control: Literal["phases", "splits"] = "phases"
    """What agents set: each signal's next phase, or (for td3 and sac) how the green of each cycle is shared."""
    reward: Literal["queue", "pressure", "delay_difference"] = "queue"
    """What an agent gets, of its own district: less the cars that stand or wait to enter, less the pressure of its
    movements, or by how many those that stand or wait became fewer."""
    decision_s: float = 5.0
    """Time between decisions, of rules too."""
    cycle_s: float = 45.0
    """Between decisions on splits: the cycle of all signals."""
    min_green_s: float = 5.0
    """Time that a phase stays green at least."""
    yellow_s: float = 3.0
    """Between two phases."""
    training_s: float = 900.0
    """Length of a training episode, which starts anywhere in the hour on empty roads."""
    training_demand: tuple[float, float] = (0.8, 1.6)
    """Demand in training over that of the scenario, drawn anew in every episode; above 1, so that full roads ahead
    are met often."""
