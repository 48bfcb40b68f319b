"""Events of an episode, and a town under them."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.traffic.build import build, build_traffic, load
from dynamic_graph_fed_rl.environments.traffic.events import INCIDENT_S, draw_events
from dynamic_graph_fed_rl.environments.traffic.live import recovery_s
from dynamic_graph_fed_rl.environments.traffic.scenarios import SCENARIOS, kinds_of, stack_scenarios
from dynamic_graph_fed_rl.environments.traffic.settings import TrafficSettings

SETTINGS = TrafficSettings(network="city", signals=12, duration_s=1800.0, scenarios=tuple(SCENARIOS))
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def town():
    """A town of all kinds of hour, a compiled step of it, and draws of each kind."""
    network, demand = load(SETTINGS)
    environment = build_traffic(SETTINGS, network, demand, 3, training=False)

    @jax.jit
    def draw(key, number):
        kind = jax.tree.map(lambda leaf: leaf[number], environment.kinds)
        return draw_events(key, kind, network.links, network.signals, environment.busy, 1800.0, jnp.zeros(()), 1800.0)

    def of_kind(name, key=KEY):
        return draw(key, list(SCENARIOS).index(name))

    reset, step = eqx.filter_jit(environment.reset), eqx.filter_jit(environment.step)

    def roll(events, decisions):
        """States and transitions under random phases, the same in every call."""
        state, observation = reset(KEY)
        state = eqx.tree_at(lambda s: s.events, state, events)
        rng, rows = np.random.default_rng(0), []
        for t in range(decisions):
            action = jnp.asarray(rng.integers(0, 4, (3, environment.spec.slots)), jnp.int32)
            state, transition = step(jax.random.fold_in(KEY, t), state, action)
            rows.append((state, transition))
        return rows

    return network, environment, of_kind, roll


def test_the_same_key_gives_the_same_events_and_another_one_others(town):
    _, _, of_kind, _ = town
    for name in SCENARIOS:
        first, again = of_kind(name), of_kind(name)
        assert eqx.tree_equal(first, again)
    assert not eqx.tree_equal(of_kind("incidents"), of_kind("incidents", jax.random.key(4)))


def test_incidents_close_one_to_three_links_for_ten_minutes_within_the_episode(town):
    _, environment, of_kind, _ = town
    counts = set()
    for seed in range(20):
        events = of_kind("incidents", jax.random.key(seed))
        rows = np.asarray(jax.vmap(events.row)(jnp.arange(0.0, 1800.0, 5.0)))
        closed = np.asarray(environment.closures.members)[rows].sum(1)
        assert (closed > 0).sum() * 5.0 == INCIDENT_S
        assert closed[0] == closed[-1] == 0
        counts.add(int(closed.max()))
    assert counts == {1, 2, 3}


def test_works_last_for_the_episode(town):
    _, environment, of_kind, _ = town
    events = of_kind("rolling_works")
    rows = [int(events.row(jnp.float32(t))) for t in (0.0, 900.0, 1799.0)]
    assert len(set(rows)) == 1 and environment.closures.members[rows[0]].sum() == 1


@pytest.mark.parametrize("rate", [0.01, 0.04])
def test_a_failure_rate_is_the_expected_share_of_links_closed_at_a_time(town, rate):
    network, _, _, _ = town
    _, demand = load(SETTINGS)
    scenario, sets = stack_scenarios(network, demand, kinds_of(("rush_hour_dynamics",), rate, True), 0.5)
    drawn = sets[int(scenario.first_set[0]) :]
    assert len(drawn) == int(scenario.sets[0])
    share = np.mean([len(one.links) for one in drawn]) / network.links
    # sixteen sets round to a sixteenth of a link
    assert share == pytest.approx(rate, abs=0.5 / 16 / network.links + 1e-9)


def test_a_topology_that_does_not_vary_stays_closed(town):
    network, _, _, _ = town
    _, demand = load(SETTINGS)
    scenario, _ = stack_scenarios(network, demand, kinds_of(("incidents", "rush_hour_dynamics"), None, False), 0.5)
    busy = jnp.arange(3)
    for number in range(2):
        kind = jax.tree.map(lambda leaf, i=number: leaf[i], scenario)
        events = draw_events(KEY, kind, network.links, network.signals, busy, 1800.0, jnp.zeros(()), 1800.0)
        assert len(np.unique(jax.vmap(events.row)(jnp.arange(0.0, 1800.0, 50.0)))) == 1


def test_the_rush_hours_course_has_its_mean_and_its_limits(town):
    _, environment, of_kind, _ = town
    peaks = []
    for key in jax.random.split(KEY, 10):
        events = of_kind("rush_hour", key)
        level = [float(events.demand_level(environment.closures.demand, jnp.float32(t))) for t in (450.0, 1350.0)]
        assert min(level) >= 0.6 and max(level) <= 1.4
        assert np.mean(level) == pytest.approx(1.0)
        peaks.append(float(events.peak_s))
    assert min(peaks) >= 0.0 and max(peaks) <= 1800.0 and np.ptp(peaks) > 600.0


def test_cars_are_kept_and_none_enters_while_links_close_and_open(town):
    network, environment, of_kind, roll = town
    events = of_kind("rush_hour_dynamics")
    # three sets, one after the other, of three links each
    three = np.flatnonzero(np.asarray(environment.closures.members).sum(1) == 3)[:3]
    slots = jnp.asarray([60.0, 240.0, 420.0])
    changes = jnp.asarray(three, jnp.int32), slots, slots + 180.0
    events = eqx.tree_at(lambda e: (e.closing, e.from_s, e.until_s), events, changes)
    wanted = left = 0.0
    before, closed_for = None, 0
    for state, transition in roll(events, 140):
        metrics, traffic = transition.info["metrics"], state.traffic
        wanted, left = wanted + metrics["total_wanted"], left + metrics["total_left"]
        assert wanted == left + traffic.vehicles.sum() + traffic.entry.sum()
        assert (traffic.queue >= 0).all() and (traffic.vehicles >= 0).all()
        standing = np.bincount(network.movement_from, np.asarray(traffic.queue), minlength=network.links)
        assert (standing <= traffic.vehicles).all()
        # closed during the decision that led here
        during = environment.closures.members[events.row(traffic.time_s - environment.decision_s)]
        if before is not None:
            assert (traffic.vehicles <= before.vehicles)[during].all()
        assert (np.asarray(traffic.queue)[np.asarray(during)[network.movement_to]] == 0).all()
        np.testing.assert_array_equal(
            environment.conditions(state).closed, environment.closures.members[events.row(traffic.time_s)]
        )
        before, closed_for = traffic, closed_for + int(during.any())
    assert closed_for == 108


def test_closures_are_seen_with_the_time_since_they_began(town):
    network, environment, of_kind, roll = town
    rows = roll(of_kind("incidents"), 330)[::10]
    names = [column.name for column in environment.spec.edge_features]
    exits = [column.name for column in environment.spec.node_features].index("exits_open")
    was_closed = 0
    for state, transition in rows:
        closed = np.asarray(environment.closures.members[state.events.row(state.traffic.time_s)])
        graph, view = transition.observation.graph, environment.view
        edges = np.asarray(graph.edges)
        shut = np.array([closed[row[mask]].any() for row, mask in zip(*_rows(view.road_links), strict=True)])
        for agent in range(3):
            mask = np.asarray(view.edge_mask[agent])
            own = shut[np.asarray(view.edge_index[agent])][mask]
            np.testing.assert_array_equal(edges[agent, mask, names.index("open")], ~own)
            np.testing.assert_array_equal(np.asarray(graph.edge_mask[agent])[mask], ~own)
        out = [closed[row[mask]].mean() for row, mask in zip(*_rows(view.exit_links), strict=True)]
        np.testing.assert_allclose(
            np.asarray(graph.nodes)[np.asarray(view.node_mask)][:, exits],
            1.0 - np.array(out)[np.asarray(view.node_index)[np.asarray(view.node_mask)]],
            atol=1e-6,
        )
        was_closed += closed.any()
        begin = float(state.events.from_s[0])
        if closed.any():
            assert state.since_s[closed].max() <= state.traffic.time_s - begin + environment.decision_s
    assert was_closed == 12
    hidden = replace(environment.view, closures_visible=False)
    state = next(s for s, _ in rows if s.events.row(s.traffic.time_s) > 0)
    open_all = eqx.tree_at(lambda s: s.events.closing, state, jnp.zeros_like(state.events.closing))
    look = eqx.filter_jit(lambda s: hidden.observe(environment.sensed(s), jnp.asarray(False)))
    looks = [look(s) for s in (state, eqx.tree_at(lambda s: s.since_s, open_all, jnp.full_like(state.since_s, 1e6)))]
    assert eqx.tree_equal(*looks)


def _rows(table):
    return np.asarray(table.index), np.asarray(table.mask)


def test_failed_detectors_change_what_is_seen_and_nothing_else(town):
    network, environment, of_kind, roll = town
    normal, broken = of_kind("normal"), of_kind("sensor_failures")
    failed = ~np.asarray(broken.working)
    assert failed.sum() == np.ceil(0.1 * network.links)
    alike = eqx.tree_at(lambda e: e.working, normal, broken.working)
    for (a, seen), (b, poor) in zip(roll(normal, 60), roll(alike, 60), strict=True):
        assert eqx.tree_equal(a.traffic, b.traffic)
        np.testing.assert_array_equal(seen.reward, poor.reward)
    full, less = environment.sensed(a), environment.sensed(b)
    for name in ("link_vehicles", "link_arriving", "link_near", "link_entry"):
        whole, part = np.asarray(getattr(full, name)), np.asarray(getattr(less, name))
        np.testing.assert_array_equal(part, np.where(failed, 0.0, whole))
    assert np.asarray(full.link_vehicles)[failed].sum() > 0
    assert (np.asarray(less.lane_queue)[failed[network.lane_link]] == 0).all()
    ok = [column.name for column in environment.spec.edge_features].index("sensors_ok")
    assert (seen.observation.graph.edges[..., ok] >= poor.observation.graph.edges[..., ok]).all()
    assert (poor.observation.graph.edges[..., ok] < seen.observation.graph.edges[..., ok]).any()


def test_a_dark_signal_takes_no_orders_until_it_is_lit_again(town):
    network, environment, of_kind, roll = town
    events = of_kind("dark_signals")
    assert int(events.dark.sum()) == 2
    events = eqx.tree_at(
        lambda e: (e.incident_from_s, e.incident_until_s), events, (jnp.float32(50.0), jnp.float32(150.0))
    )
    rows = roll(events, 60)
    dark = np.asarray(events.dark)
    phases = np.array([state.traffic.phase for state, _ in rows])
    # asked for anything at random, it stays where it was
    assert (phases[10:29, dark] == phases[10, dark]).all()
    assert (phases[10:29, ~dark] != phases[10, ~dark]).any()
    assert (phases[30:, dark] != phases[10, dark]).any()


def test_recovery_is_the_time_until_queues_stay_as_without_the_incident():
    calm = np.full(200, 20.0)
    disturbed = calm.copy()
    disturbed[10:60] = 49.0
    # over the 30 looks from 57 on the mean is 22.9, less than ten per cent and one above 20
    assert recovery_s(disturbed, calm, 200.0, 10.0) == 370.0
    assert recovery_s(calm, calm, 200.0, 10.0) == 0.0
    assert recovery_s(np.full(200, 23.1), calm, 200.0, 10.0) == np.inf
    assert recovery_s(np.full(200, 22.9), calm, 200.0, 10.0) == 0.0
    # no five minutes are left
    assert recovery_s(calm, calm, 1800.0, 10.0) == np.inf


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (TrafficSettings(uptake=1.5), "uptake 1.5: a share"),
        (TrafficSettings(edge_failure_rate=-0.1), "edge_failure_rate -0.1: a share"),
        (TrafficSettings(network="city", signals=7, edge_failure_rate=0.5), "edge_failure_rate 0.5: .* at most 0"),
    ],
)
def test_settings_of_events_that_cannot_be_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        build(settings, 3)
