"""From a user's settings to the environments and baselines of a grid."""

from dataclasses import replace
from functools import partial

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from dynamic_graph_fed_rl.environments.domain import Domain
from dynamic_graph_fed_rl.environments.power_grid.admittance import operating_point
from dynamic_graph_fed_rl.environments.power_grid.advice import GridAdvice
from dynamic_graph_fed_rl.environments.power_grid.baselines import BASELINES
from dynamic_graph_fed_rl.environments.power_grid.dynamics import GridConstants
from dynamic_graph_fed_rl.environments.power_grid.environment import PowerGrid, Prices
from dynamic_graph_fed_rl.environments.power_grid.fleet import build_fleet
from dynamic_graph_fed_rl.environments.power_grid.network import (
    Case,
    known_partitions,
    load_case,
    partition,
    sheddable_load_buses,
)
from dynamic_graph_fed_rl.environments.power_grid.observation import FlatView, GraphView
from dynamic_graph_fed_rl.environments.power_grid.pictures import illustrate
from dynamic_graph_fed_rl.environments.power_grid.power_flow import power_flow
from dynamic_graph_fed_rl.environments.power_grid.scenarios import (
    SCENARIO_HELP,
    SCENARIOS,
    built_in_profiles,
    read_profiles,
    stack_scenarios,
)
from dynamic_graph_fed_rl.environments.power_grid.set_points import SlotLayout, slot_layout
from dynamic_graph_fed_rl.environments.power_grid.settings import PowerGridSettings
from dynamic_graph_fed_rl.environments.power_grid.state import Units
from dynamic_graph_fed_rl.graph import local_views


def build_grid(settings: PowerGridSettings, agents: int, training: bool) -> PowerGrid:
    """One environment that mixes the scenarios of the settings.

    In training, episodes are short and start anywhere in a day; in evaluation they are whole days.

    Raises:
        ValueError: settings that cannot be, by name.
    """
    _check(settings)
    case = load_case(settings.case)
    fleet = build_fleet(case, settings.renewable_share)
    point = operating_point(case)
    region = regions(case, settings.partition, agents)
    shed_bus = sheddable_load_buses(case)
    shed_bus = shed_bus[case.live[shed_bus]]
    layout = slot_layout(region, fleet.bus, shed_bus)
    live = case.live

    def real(values: np.ndarray | float) -> jnp.ndarray:
        return jnp.asarray(values, jnp.float32)

    grid = GridConstants(
        flow=power_flow(case),
        unit_bus=jnp.asarray(fleet.bus, jnp.int32),
        p_min_mw=real(fleet.p_min_mw),
        load_mw=real(np.where(live, case.load_p_mw, 0.0)),
        load_mvar=real(np.where(live, case.load_q_mvar, 0.0)),
        injection_mvar=real(np.where(point.regulated, 0.0, point.generation_q_pu) * case.base_mva),
        voltage_set_pu=real(point.v_set_pu),
        resistance=real(case.r),
        reactance=real(case.x),
        rating_mva=real(np.where(case.rate_mva > 0, case.rate_mva, np.inf)),
        trip_loading=real(settings.trip_loading),
        trip_after_steps=jnp.asarray(settings.trip_after_steps),
        instant_trip_loading=real(settings.instant_trip_loading),
        max_outages=settings.max_outages,
    )
    units = Units(
        bus=jnp.asarray(fleet.bus, jnp.int32),
        p_max_mw=real(fleet.p_max_mw),
        p_min_mw=real(fleet.p_min_mw),
        cost_c2=real(fleet.cost_c2),
        cost_c1=real(fleet.cost_c1),
        cost_c0=real(fleet.cost_c0),
        ramp_mw_per_min=real(fleet.ramp_mw_per_min),
        co2_t_per_mwh=real(fleet.co2_t_per_mwh),
        wind=jnp.asarray(fleet.wind),
        solar=jnp.asarray(fleet.solar),
    )
    profiles = built_in_profiles() if settings.profiles is None else read_profiles(settings.profiles, case.bus_number)
    kinds = stack_scenarios(settings.scenarios)
    if settings.line_failure_rate is not None:
        rate = jnp.full_like(kinds.line_failure_rate, settings.line_failure_rate)
        kinds = eqx.tree_at(lambda k: k.line_failure_rate, kinds, rate)
    if training:
        rate = kinds.line_failure_rate * settings.training_faults
        kinds = eqx.tree_at(lambda k: k.line_failure_rate, kinds, rate)
    if settings.observation == "flat":
        view = FlatView(jnp.zeros(layout.mask.shape, jnp.int32), case.buses, len(fleet.bus), len(shed_bus))
    else:
        actuator_bus = np.concatenate([fleet.bus, shed_bus])
        view = _graph_view(case, region, settings.radius, layout, actuator_bus)
    return PowerGrid(
        grid=grid,
        units=units,
        prices=Prices(real(settings.overload_price), real(settings.unserved_price), real(settings.price_span)),
        profiles=profiles,
        kinds=kinds,
        max_shed=real(settings.max_shed),
        shed_bus=jnp.asarray(shed_bus, jnp.int32),
        layout=layout,
        view=view,
        step_s=settings.step_s,
        decision_interval=settings.decision_interval,
        episode_decisions=settings.training_decisions if training else settings.episode_decisions,
        random_start=training,
        screen_n_minus_1=not training,
    )


def regions(case: Case, name: str, agents: int) -> Int[np.ndarray, " buses"]:
    """The region of every bus: a known partition that fits the number of agents, or a computed one."""
    known = {key: value for key, value in known_partitions(case).items() if value.max() + 1 == agents}
    if agents > case.live.sum():
        raise ValueError(f"{agents} agents, but case '{case.name}' has {case.live.sum()} connected buses to share")
    if name == "auto":
        return next(iter(known.values())) if known else partition(case, agents)
    chosen = partition(case, name)
    if chosen.max() + 1 != agents:
        raise ValueError(f"partition '{name}' has {chosen.max() + 1} regions, but there are {agents} agents")
    return chosen


def _graph_view(
    case: Case,
    region: Int[np.ndarray, " buses"],
    radius: int,
    layout: SlotLayout,
    actuator_bus: Int[np.ndarray, " actuators"],
) -> GraphView:
    # branches with an end outside the main network carry nothing and join nothing
    used = np.flatnonzero(case.closed & case.live[case.branch_from] & case.live[case.branch_to])
    senders = np.concatenate([case.branch_from[used], case.branch_to[used]])
    receivers = np.concatenate([case.branch_to[used], case.branch_from[used]])
    views = local_views(region, senders, receivers, radius)
    directed = np.concatenate([used, used + case.branches])
    place = np.zeros(layout.mask.shape, np.int32)
    for agent, row in enumerate(np.asarray(layout.actuator)):
        where = {int(bus): i for i, bus in enumerate(views.node_index[agent][views.node_mask[agent]])}
        mask = np.asarray(layout.mask[agent])
        place[agent, mask] = [where[int(bus)] for bus in actuator_bus[row[mask]]]
    return GraphView(
        node_index=jnp.asarray(views.node_index),
        node_mask=jnp.asarray(views.node_mask),
        owned=jnp.asarray(views.owned),
        edge_index=jnp.asarray(directed[views.edge_index]),
        edge_mask=jnp.asarray(views.edge_mask),
        senders=jnp.asarray(views.senders),
        receivers=jnp.asarray(views.receivers),
        slot_owner=jnp.asarray(place),
    )


def build(settings: PowerGridSettings, agents: int) -> Domain:
    """Training environment, one evaluation environment a scenario, and the baselines."""
    _check(settings)
    scenarios = {
        name: build_grid(replace(settings, scenarios=(name,)), agents, training=False) for name in settings.scenarios
    }
    case = load_case(settings.case)
    region = regions(case, settings.partition, agents)
    return Domain(
        training=build_grid(settings, agents, training=True),
        owners=None,
        scenarios=scenarios,
        baselines=BASELINES,
        idle="do-nothing",
        references=("dc-opf",),
        advice=GridAdvice(
            next(iter(scenarios.values())), case, region, build_fleet(case, settings.renewable_share).row
        ),
        illustrate=partial(illustrate, scenarios=scenarios, case=case, region=region),
        help=SCENARIO_HELP | {name: str(rule.__doc__).splitlines()[0] for name, rule in BASELINES.items()},
    )


def _check(settings: PowerGridSettings) -> None:
    """Refuse impossible settings by name.

    Raises:
        ValueError: the setting, its value, and what would be right.
    """
    positive = (
        "step_s", "decision_interval", "episode_decisions", "training_decisions", "price_span", "trip_loading",
        "trip_after_steps", "instant_trip_loading",
    )  # fmt: skip
    for name in positive:
        if getattr(settings, name) <= 0:
            raise ValueError(f"{name} {getattr(settings, name)}: must be above 0")
    for name in ("radius", "overload_price", "unserved_price", "training_faults"):
        if getattr(settings, name) < 0:
            raise ValueError(f"{name} {getattr(settings, name)}: must be at least 0")
    if settings.line_failure_rate is not None and settings.line_failure_rate < 0:
        raise ValueError(f"line_failure_rate {settings.line_failure_rate}: must be at least 0")
    if not 0 < settings.max_shed <= 1:
        raise ValueError(f"max_shed {settings.max_shed}: must lie above 0 and at most at 1")
    if settings.max_outages < 3:
        raise ValueError(f"max_outages {settings.max_outages}: must be at least 3 (two stay free for trips)")
    if not settings.scenarios:
        raise ValueError(f"scenarios: at least one of {', '.join(SCENARIOS)}")
