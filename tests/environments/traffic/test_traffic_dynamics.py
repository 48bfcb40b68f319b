from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_city import ROUTES, net_xml, write

from dynamic_graph_fed_rl.environments.traffic.constants import demand_constants, road_constants
from dynamic_graph_fed_rl.environments.traffic.demand import read_demand
from dynamic_graph_fed_rl.environments.traffic.dynamics import Conditions, advance, empty_roads, switched
from dynamic_graph_fed_rl.environments.traffic.generate import generated
from dynamic_graph_fed_rl.environments.traffic.joining import read_network
from dynamic_graph_fed_rl.environments.traffic.network import Conduct, Demand
from dynamic_graph_fed_rl.environments.traffic.rules import critical_loads

STEPS = 60
# one program for all tests of the crossing: networks and demands are its arguments
move_on = eqx.filter_jit(advance)


@pytest.fixture(scope="module")
def town():
    """A small town, and one compiled function that orders phases and moves it on by a minute."""
    network, demand = generated("city", 5, 0.9, 900.0, seed=3)
    roads, wishes = road_constants(network), demand_constants(network, demand)

    @jax.jit
    def minute(state, wanted, closed, level, key):
        state = switched(state, wanted, jnp.full(network.signals, 3.0))
        return advance(roads, wishes, state, key, shut(network, closed), level, STEPS)

    return network, roads, minute


@settings(max_examples=20)
@given(seed=st.integers(0, 2**16), level=st.floats(0.2, 5.0), shut=st.floats(0.0, 0.5))
def test_no_car_is_lost_or_made_whatever_the_signals_and_closures(town, seed, level, shut):
    network, roads, minute = town
    rng = np.random.default_rng(seed)
    state = empty_roads(roads, network.signals)
    wanted = entered = left = 0.0
    for t in range(12):
        phase = jnp.asarray(rng.integers(0, network.phase_count), jnp.int32)
        closed = jnp.asarray(rng.uniform(size=network.links) < shut)
        state, counts = minute(state, phase, closed, jnp.float32(level), jax.random.key(seed + t))
        wanted, entered, left = wanted + counts.wanted, entered + counts.entered, left + counts.left
        assert wanted == entered + state.entry.sum()
        assert entered == left + state.vehicles.sum()
        assert (state.queue >= 0).all() and (state.entry >= 0).all() and (state.vehicles >= 0).all()
        assert (state.vehicles <= roads.link_storage).all()
        standing = np.bincount(network.movement_from, np.asarray(state.queue), minlength=network.links)
        assert (standing <= state.vehicles).all()
        for leaf in (state.queue, state.vehicles, state.entry):
            np.testing.assert_array_equal(leaf, np.round(leaf))


@pytest.fixture(scope="module")
def crossing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crossing")
    network = read_network(write(folder, "small.net.xml", net_xml()))
    return network, read_demand(network, write(folder, "a.rou.xml", ROUTES), 0.0, 900.0)


def shut(network, closed):
    return eqx.tree_at(lambda c: c.closed, Conditions.normal(network.links, network.signals), closed)


def run(network, demand, state, wanted, seconds, closed=None, key=0, conditions=None):
    roads = road_constants(network)
    if conditions is None:
        conditions = shut(network, jnp.zeros(network.links, bool) if closed is None else closed)
    state = switched(state, jnp.asarray(wanted, jnp.int32), jnp.full(network.signals, 3.0))
    wishes = demand_constants(network, demand)
    trace = []
    for t in range(seconds):
        state, counts = move_on(roads, wishes, state, jax.random.key(key + t), conditions, jnp.ones(()), 1)
        trace.append((state, counts))
    return trace


def only(network, demand, link: str, rate: float, end: str | None = None) -> Demand:
    """Cars on one link alone, all of which go on to `end`, or end there."""
    entering = np.zeros_like(demand.rate_per_s[:1])
    entering[0, network.link_of_edge[link]] = rate
    ratio = np.zeros_like(demand.turn_ratio[:1])
    if end is not None:
        pair = network.link_of_edge[link], network.link_of_edge[end]
        ratio[0, np.flatnonzero((network.turn_from == pair[0]) & (network.turn_to == pair[1]))] = 1.0
    return Demand(0.0, 900.0, entering, ratio)


def test_a_car_alone_takes_the_free_time_of_its_links(crossing):
    network, demand = crossing
    roads = road_constants(network)
    demand = only(network, demand, "south", 1.0, "north")
    state = empty_roads(roads, 1)
    # one car in the first second, none after it
    wishes, everywhere = demand_constants(network, demand), Conditions.normal(4, 1)
    state, _ = move_on(roads, wishes, state, jax.random.key(0), everywhere, jnp.ones(()), 1)
    # the south has its green in the second phase
    state = eqx.tree_at(lambda s: (s.phase, s.target), state, (jnp.ones(1, jnp.int32), jnp.ones(1, jnp.int32)))
    for t in range(1, 60):
        state, counts = move_on(roads, wishes, state, jax.random.key(t), everywhere, jnp.zeros(()), 1)
        if counts.left > 0:
            break
    steps = np.maximum(np.round(network.link_time_s), 1)
    assert t == steps[network.link_of_edge["south"]] + steps[network.link_of_edge["north"]]


def test_a_queue_discharges_at_saturation_after_its_lost_time(crossing):
    network, demand = crossing
    demand = only(network, demand, "south", 0.9, "north")
    conduct = Conduct(saturation_per_s=0.4, lost_s=3.0)
    network = replace(network, conduct=conduct)
    red = run(network, demand, empty_roads(road_constants(network), 1), [0], 90)
    queue = [float(s.queue.sum()) for s, _ in red]
    assert queue[-1] == network.link_storage[network.link_of_edge["south"]]
    green = run(network, demand, red[-1][0], [1], 120)
    passed = [float(s.vehicles[network.link_of_edge["north"]]) for s, _ in green]
    # 3 s of yellow, the lost time, then 0.4 cars a second; none reaches the end of the next link for 30 s
    first = next(t for t, n in enumerate(passed) if n > 0) + 1
    assert first == 3 + 3
    assert passed[29] - passed[first - 1] == pytest.approx(0.4 * (30 - first), abs=1.0)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_drop_of_capacity_takes_its_share_of_the_saturation_flow(crossing, share):
    network, demand = crossing
    demand = only(network, demand, "south", 0.9, "north")
    south, north = network.link_of_edge["south"], network.link_of_edge["north"]
    normal = Conditions.normal(network.links, 1)
    dropped = eqx.tree_at(lambda c: c.capacity, normal, normal.capacity.at[south].set(share))
    trace = run(network, demand, empty_roads(road_constants(network), 1), [1], 150, conditions=dropped)
    passed = np.cumsum([float(c.left) for _, c in trace]) + [float(s.vehicles[north]) for s, _ in trace]
    assert passed[149] - passed[49] == pytest.approx(100 * share * network.conduct.saturation_per_s, abs=1.0)


@pytest.mark.parametrize("phase", [0, 1])
def test_at_a_dark_signal_a_lane_passes_a_quarter_whatever_the_phase(crossing, phase):
    network, demand = crossing
    demand, north = only(network, demand, "south", 0.9, "north"), network.link_of_edge["north"]
    dark = eqx.tree_at(lambda c: c.dark, Conditions.normal(network.links, 1), jnp.ones(1, bool))
    trace = run(network, demand, empty_roads(road_constants(network), 1), [phase], 150, conditions=dark)
    passed = np.cumsum([float(c.left) for _, c in trace]) + [float(s.vehicles[north]) for s, _ in trace]
    assert passed[149] - passed[49] == pytest.approx(100 * 0.25 * network.conduct.saturation_per_s, abs=1.0)


def test_nobody_passes_at_red_or_into_a_closed_link(crossing):
    network, demand = crossing
    demand = only(network, demand, "south", 0.5, "north")
    north = network.link_of_edge["north"]
    red = run(network, demand, empty_roads(road_constants(network), 1), [0], 60)
    assert red[-1][0].vehicles[north] == 0 and red[-1][0].queue.sum() > 0
    closed = jnp.zeros(4, bool).at[north].set(True)
    shut = run(network, demand, empty_roads(road_constants(network), 1), [1], 60, closed)
    assert shut[-1][0].vehicles[north] == 0 and shut[-1][0].queue.sum() > 0


def test_a_full_link_holds_back_those_behind_and_those_outside(crossing):
    network, demand = crossing
    demand = only(network, demand, "west0", 0.9, "east")
    east = network.link_of_edge["east"]
    # three cars on a link that takes half a minute are fewer than want in
    small = replace(network, link_storage=np.where(np.arange(4) == east, 3.0, network.link_storage))
    states = run(small, demand, empty_roads(road_constants(small), 1), [0], 90)
    vehicles = np.array([s.vehicles for s, _ in states])
    assert vehicles[:, east].max() == 3
    west = network.link_of_edge["west0"]
    assert vehicles[:, west].max() == network.link_storage[west]
    assert states[-1][0].entry[west] > 0


def test_turns_are_made_in_the_ratios_of_the_demand(crossing):
    network, demand = crossing
    mixed = only(network, demand, "south", 0.3)
    south, east = network.link_of_edge["south"], network.link_of_edge["east"]
    for turn in np.flatnonzero(network.turn_from == south):
        mixed.turn_ratio[0, turn] = 0.2 if network.turn_to[turn] == east else 0.5
    # always red: who turns stands at the stop line, who ends does not
    wide = replace(network, link_storage=np.full(4, 1e4))
    roads = road_constants(wide)
    state, counts = move_on(
        roads,
        demand_constants(wide, mixed),
        empty_roads(roads, 1),
        jax.random.key(1),
        Conditions.normal(4, 1),
        jnp.ones(()),
        6000,
    )
    entered = float(counts.entered)
    assert entered == pytest.approx(0.3 * 6000, rel=0.05)
    assert float(counts.left) / entered == pytest.approx(0.3, abs=0.03)
    waiting = np.bincount(network.movement_to, np.asarray(state.queue), minlength=4) / entered
    assert waiting[east] == pytest.approx(0.2, abs=0.03)
    assert waiting[network.link_of_edge["north"]] == pytest.approx(0.5, abs=0.03)


def test_mean_delay_at_a_fixed_time_signal_lies_within_websters_terms(crossing):
    """Webster (1958): C (1 - g/C)^2 / (2 (1 - y)) for uniform arrivals, plus x^2 / (2 q (1 - x)) for Poisson ones.
    Ours are less random than these, as no two cars come in a second."""
    network, demand = crossing
    flow, saturation, green, cycle = 0.15, 0.5, 30.0, 66.0
    network = replace(network, conduct=Conduct(saturation, lost_s=0.0, yellow_use_s=0.0, cruise=1.0))
    demand = only(network, demand, "south", flow, "north")
    roads, wishes = road_constants(network), demand_constants(network, demand)

    def second(state, row):
        time_s, key = row
        wanted = (jnp.mod(time_s, cycle) >= 33.0).astype(jnp.int32)[None]
        state = switched(state, wanted, jnp.full(1, 3.0))
        return advance(roads, wishes, state, key, Conditions.normal(4, 1), jnp.ones(()), 1)

    def hours(key):
        seconds = 40 * int(cycle)
        rows = jnp.arange(seconds, dtype=jnp.float32), jax.random.split(key, seconds)
        _, counts = jax.lax.scan(second, empty_roads(roads, 1), rows)
        return counts.queued_s.sum(), counts.entered.sum()

    queued, entered = jax.jit(jax.vmap(hours))(jax.random.split(jax.random.key(0), 16))
    share, load = green / cycle, flow / saturation
    degree = load / share
    uniform, chance = cycle * (1 - share) ** 2 / (2 * (1 - load)), degree**2 / (2 * flow * (1 - degree))
    assert 0.97 * uniform < float(queued.sum() / entered.sum()) < uniform + chance


def test_a_generated_demand_loads_nine_of_ten_signals_less_than_asked():
    network, demand = generated("grid", 12, 0.4, 3600.0, seed=0)
    loads = critical_loads(network, demand)
    assert (loads <= 0.4 + 1e-9).mean() == pytest.approx(0.9, abs=0.1)
    assert network.signals == 12
