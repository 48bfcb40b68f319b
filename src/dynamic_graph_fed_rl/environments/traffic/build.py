"""From a user's settings to the environments and baselines of a city."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from dynamic_graph_fed_rl.environments.domain import Domain
from dynamic_graph_fed_rl.environments.traffic.baselines import BASELINE_HELP, baselines, rules
from dynamic_graph_fed_rl.environments.traffic.conducts import read_city
from dynamic_graph_fed_rl.environments.traffic.constants import road_constants
from dynamic_graph_fed_rl.environments.traffic.demand import routed
from dynamic_graph_fed_rl.environments.traffic.environment import Traffic
from dynamic_graph_fed_rl.environments.traffic.events import closure_constants
from dynamic_graph_fed_rl.environments.traffic.generate import GENERATED, generated
from dynamic_graph_fed_rl.environments.traffic.network import Demand, Network, districts
from dynamic_graph_fed_rl.environments.traffic.observation import traffic_view
from dynamic_graph_fed_rl.environments.traffic.pictures import illustrate
from dynamic_graph_fed_rl.environments.traffic.proof import InSumo
from dynamic_graph_fed_rl.environments.traffic.scenarios import (
    SCENARIO_HELP,
    busy_links,
    kinds_of,
    stack_scenarios,
)
from dynamic_graph_fed_rl.environments.traffic.sensing import signal_constants
from dynamic_graph_fed_rl.environments.traffic.settings import TrafficSettings
from dynamic_graph_fed_rl.environments.traffic.splits import GreenSplits
from dynamic_graph_fed_rl.environments.traffic.sumo_files import installed_begin_s, installed_files
from dynamic_graph_fed_rl.environments.traffic.sumo_process import SumoSettings


def load(settings: TrafficSettings) -> tuple[Network, Demand]:
    """The network and its demand.

    Raises:
        ValueError: unknown network, a file that is not there or does not fit, as the readers say.
    """
    if (settings.net is None) != (settings.routes is None):
        raise ValueError(
            "net and routes: a network of one's own needs both, --net city.net.xml --routes city.rou.xml"
        )
    sumo = sumo_settings(settings)
    if sumo is None:
        return generated(settings.network, settings.signals, settings.load, settings.duration_s, settings.layout_seed)
    return read_city(sumo.net, sumo.routes, sumo.begin_s, settings.duration_s)


def sumo_settings(settings: TrafficSettings) -> SumoSettings | None:
    """An hour of the same network and demand in SUMO, every car with its route; None for a generated network.

    Raises:
        ValueError: unknown network, or a file that is not there.
    """
    if settings.net is not None and settings.routes is not None:
        net, routes = Path(settings.net), Path(settings.routes)
    elif settings.network in GENERATED:
        return None
    else:
        net, routes = installed_files(settings.network)
    begin_s = installed_begin_s(routes) if settings.begin_s is None else settings.begin_s
    return SumoSettings(
        net,
        routed(net, routes),
        begin_s or 0.0,
        settings.duration_s,
        yellow_s=settings.yellow_s,
        min_green_s=settings.min_green_s,
        uptake=settings.uptake,
    )


def build_traffic(
    settings: TrafficSettings, network: Network, demand: Demand, agents: int, training: bool
) -> Traffic | GreenSplits:
    """One environment that mixes the scenarios of the settings.

    In training, episodes are short, start anywhere in the hour and vary in demand.

    Raises:
        ValueError: settings that cannot be, by name.
    """
    city = _by_phases(settings, network, demand, agents, training)
    return city if settings.control == "phases" else GreenSplits(city, round(settings.cycle_s / settings.dt_s))


def _by_phases(settings: TrafficSettings, network: Network, demand: Demand, agents: int, training: bool) -> Traffic:
    roads = road_constants(network, settings.dt_s)
    signals = signal_constants(network)
    district = districts(network.signal_xy_m, agents)
    whose = link_districts(network, district) == np.arange(agents)[:, None]
    length_s = min(settings.training_s, demand.duration_s) if training else demand.duration_s
    real = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    spread = settings.training_demand if training else (1.0, 1.0)
    kinds = kinds_of(settings.scenarios, settings.edge_failure_rate, settings.time_varying_topology)
    scenario, sets = stack_scenarios(network, demand, kinds, settings.uptake, spread)
    return Traffic(
        roads=roads,
        closures=closure_constants(network, sets),
        busy=jnp.asarray(busy_links(network, demand), jnp.int32),
        view=traffic_view(
            network, signals, district, settings.radius, settings.min_green_s, settings.closures_visible
        ),
        kinds=scenario,
        link_district=jnp.asarray(whose),
        district_signals=real(np.bincount(district, minlength=agents)),
        min_green_s=real(settings.min_green_s),
        yellow_s=real(settings.yellow_s),
        latest_start_s=real(demand.duration_s - length_s),
        decision_steps=round(settings.decision_s / settings.dt_s),
        episode_decisions=int(length_s / settings.decision_s),
        reward=settings.reward,
    )


def link_districts(network: Network, district: Int[np.ndarray, " signals"]) -> Int[np.ndarray, " links"]:
    """Of every link: that of the signal at its stop line, else at its beginning, else of the nearest."""
    stop_line = network.link_xy_m[:, 1]
    nearest = np.linalg.norm(stop_line[:, None] - network.signal_xy_m, axis=-1).argmin(1)
    signal = np.where(network.link_origin >= 0, network.link_origin, nearest)
    return district[np.where(network.link_end >= 0, network.link_end, signal)]


def build(settings: TrafficSettings, agents: int) -> Domain:
    """Training environment, one evaluation environment a scenario, and the baselines."""
    _check(settings)
    network, demand = load(settings)
    if settings.control == "splits":
        _check_cycle(settings, network)
    own = rules(network, demand, signal_constants(network), settings.decision_s)
    training = build_traffic(settings, network, demand, agents, training=True)
    sumo = sumo_settings(settings)
    scenarios = {
        name: build_traffic(replace(settings, scenarios=(name,)), network, demand, agents, training=False)
        for name in settings.scenarios
    }
    shown = {"scenarios": scenarios, "rules": own, "network": network, "demand": demand}
    return Domain(
        training=training,
        owners=None,
        scenarios=scenarios,
        illustrate=partial(illustrate, **shown, district=districts(network.signal_xy_m, agents)),
        baselines=baselines(own),
        simulator=None if sumo is None else InSumo(network, sumo, training, {**own, "fixed-time": None}),
        idle="fixed-time",
        references=("random",),
        help=SCENARIO_HELP | BASELINE_HELP,
    )


def _check(settings: TrafficSettings) -> None:
    """Refuse impossible settings by name.

    Raises:
        ValueError: the setting, its value, and what would be right.
    """
    for name in ("duration_s", "dt_s", "decision_s", "cycle_s", "training_s", "signals", "load"):
        if getattr(settings, name) <= 0:
            raise ValueError(f"{name} {getattr(settings, name)}: must be above 0")
    for name in ("min_green_s", "yellow_s", "radius"):
        if getattr(settings, name) < 0:
            raise ValueError(f"{name} {getattr(settings, name)}: must be at least 0")
    for name in ("uptake", "edge_failure_rate"):
        if not 0.0 <= (getattr(settings, name) or 0.0) <= 1.0:
            raise ValueError(f"{name} {getattr(settings, name)}: a share, from 0 to 1")
    if settings.decision_s % settings.dt_s:
        raise ValueError(f"decision_s {settings.decision_s}: must be a multiple of dt_s, {settings.dt_s}")
    low, high = settings.training_demand
    if not 0 < low <= high:
        raise ValueError(f"training_demand {settings.training_demand}: two numbers above 0, the lower one first")


def _check_cycle(settings: TrafficSettings, network: Network) -> None:
    """Refuse cycles that cannot be.

    Raises:
        ValueError: the setting, its value, and what would be right.
    """
    most = int(network.phase_count.argmax())
    phases, name = int(network.phase_count[most]), network.signal_id[most]
    least_s = phases * (settings.min_green_s + settings.yellow_s)
    if settings.cycle_s < least_s:
        raise ValueError(
            f"cycle_s {settings.cycle_s:g}: the {phases} phases of signal '{name}' take {least_s:g} s with minimum "
            "greens and yellows"
        )
    wholes = (
        ("cycle_s", settings.cycle_s, "decision_s", settings.decision_s),
        ("training_s", settings.training_s, "cycle_s", settings.cycle_s),
        ("duration_s", settings.duration_s, "cycle_s", settings.cycle_s),
    )
    for whole, whole_s, part, part_s in wholes:
        if whole_s % part_s:
            raise ValueError(f"{whole} {whole_s:g}: must be a multiple of {part}, {part_s:g}")
