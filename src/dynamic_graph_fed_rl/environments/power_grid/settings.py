"""What a user may set about the power grid; no jax import, so that the command line stays quick."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PowerGridSettings:
    """A transmission grid under AC power flow, with weather, demand, line faults and cascades."""

    case: str = "ieee118"
    """Shipped case (ieee14, ieee30, ieee57, ieee118, ieee300) or a path to a MATPOWER .m file."""
    profiles: str | None = None
    """CSV of loads, wind and solar over whole days (format: docs/power-grid.md); default: a built-in summer day."""
    partition: str = "auto"
    """Regions: a known partition (ieee118-4, nrel-3), or auto: the known one for the number of agents if there
    is one, else connected regions of similar size."""
    scenarios: tuple[str, ...] = ("normal", "peak", "outages")
    """Kinds of day that training mixes and evaluation reports one by one."""
    renewable_share: float = 0.2
    """Share of a normal day's energy that the wind and solar farms can deliver."""
    radius: int = 1
    """Hops beyond its own region that an agent sees."""
    observation: Literal["graph", "flat"] = "graph"
    """Local graphs, or for every agent the flat vector of the whole grid (618 numbers on ieee118)."""
    step_s: float = 60.0
    """Length of a world step [s]."""
    decision_interval: int = 5
    """World steps between decisions; set-points ramp in between."""
    episode_decisions: int = 288
    """Decisions in an evaluation episode; 288 of 5 minutes are a day."""
    training_decisions: int = 48
    """Decisions in a training episode, which starts anywhere in a day."""
    training_faults: float = 2.0
    """Line faults in training over those of the scenario: what is rare must be met to be learned from."""
    price_span: float = 5.0
    """Price change [$/MWh] that half of a set-point action's range stands for."""
    max_shed: float = 0.2
    """Share of a load that one decision may shed at most."""
    line_failure_rate: float | None = None
    """Failures per line and hour; default: the scenario's."""
    trip_loading: float = 1.3
    """Loading (1 is the rating) above which a line's overload counter runs."""
    trip_after_steps: int = 10
    """Steps above `trip_loading` after which a line trips."""
    instant_trip_loading: float = 2.0
    """Loading at which a line trips within the step; what follows in the same step is a cascade."""
    max_outages: int = 8
    """Lines that may be out at once; one more is a blackout."""
    overload_price: float = 1000.0
    """Charge [$/MWh] for energy carried above a line's rating."""
    unserved_price: float = 10000.0
    """Charge [$/MWh] for energy not served."""
