"""The fast form of the steps against a plain one in NumPy, movement by movement, on the same random words."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.traffic.constants import demand_constants, road_constants
from dynamic_graph_fed_rl.environments.traffic.dynamics import Conditions, advance, empty_roads, switched
from dynamic_graph_fed_rl.environments.traffic.generate import generated
from dynamic_graph_fed_rl.environments.traffic.network import PROTECTED, RED, YIELDING, Conduct
from dynamic_graph_fed_rl.environments.traffic.steps import MIXER, drawn

WORLDS, DECISIONS, STEPS = 3, 40, 5


class Plain:
    """One world."""

    def __init__(self, network, demand, phases):
        self.network, self.demand, self.dt_s = network, demand, 1.0
        self.queue, self.quiet_s = np.zeros(network.movements), np.full(network.movements, 60.0)
        self.vehicles, self.entry = np.zeros(network.links), np.zeros(network.links)
        self.phase = self.target = phases.copy()
        self.clearing_s, self.cleared_s = np.zeros(network.signals), np.zeros(network.signals)
        self.head, self.credit = np.full(network.lanes, -1), np.ones(network.lanes, np.float32)
        self.waited_s, self.luck = np.zeros(network.lanes), np.zeros(network.lanes)
        self.strangers = self.pushed = self.blocked = 0
        self.received: list[np.ndarray] = []
        self.queued_s, self.left = np.zeros(network.movements), 0.0
        self.of_lane = [np.flatnonzero(network.movement_lane == lane) for lane in range(network.lanes)]

    def switch(self, wanted):
        begins = (wanted != self.phase) & (self.clearing_s <= 0)
        self.target = np.where(begins, wanted, self.target)
        self.clearing_s = np.where(begins, 3.0, self.clearing_s)
        self.cleared_s = np.where(begins, 0.0, self.cleared_s)

    def step(self, words, closed, dark, flow):
        network, conduct = self.network, self.network.conduct
        steps = np.maximum(np.round(network.link_time_s), 1).astype(int)
        link_words, lane_words = words[: network.links], words[network.links :]
        room = np.where(closed, 0, network.link_storage - self.vehicles)
        self.join(steps, (link_words & 0xFFF) / 2**12)
        level = self.level(closed, dark)
        self.credit = (self.credit + flow).astype(np.float32)

        willing = np.zeros(network.movements, bool)
        for lane, own in enumerate(self.of_lane):
            count, draw = self.queue[own].sum(), (lane_words[lane] & 0xFF) / 2**8
            strangers = sum(
                max(self.queue[self.of_lane[other]].sum() - self.storage(other), 0.0) / len(self.beside(other))
                for other in self.beside(lane)
            )
            anew = self.head[lane] == -1 or (self.head[lane] == -2 and strangers == 0)
            if self.head[lane] == -1:
                self.luck[lane] = (int(lane_words[lane]) * int(MIXER)) % 2**32 >> 24
            if count == 0:
                self.head[lane] = -1
            elif anew:
                drawn_head = (np.cumsum(self.queue[own]) <= draw * (count + strangers)).sum()
                self.head[lane] = drawn_head if drawn_head < len(own) else -2
                self.strangers += drawn_head == len(own)
            if self.head[lane] >= 0:
                first = own[self.head[lane]]
                full = self.full_ahead(lane, network.movement_to[first])
                willing[first] = level[first] > RED and not full
                self.blocked += level[first] > RED and full
        press = (self.quiet_s < conduct.gap_s) | (willing & (level == PROTECTED) & (room[network.movement_to] > 0))
        press &= level > RED
        waits = np.array(
            [
                willing[m] and level[m] == YIELDING and press[list(network.movement_foes[m])].any()
                for m in range(network.movements)
            ]
        )
        pushes = waits & (self.waited_s >= conduct.patience_s)[network.movement_lane]
        self.pushed += pushes.sum()
        sent = np.zeros(network.movements, bool)
        free = room.copy()
        for m in range(network.movements):
            others = pushes[network.movement_to == network.movement_to[m]].any()
            goes = pushes[m] if others else willing[m] and not waits[m]
            if goes and self.credit[network.movement_lane[m]] >= 1.0 and free[network.movement_to[m]] > 0:
                sent[m] = True
                free[network.movement_to[m]] -= 1
        self.queue -= sent
        entered = np.bincount(network.movement_to, sent, minlength=network.links)
        gone = np.bincount(network.movement_from, sent, minlength=network.links)
        for lane, own in enumerate(self.of_lane):
            if self.head[lane] != -1 and not willing[own].any():
                self.credit[lane] = np.float32(1.0) - flow[lane] * np.float32(conduct.lost_s)
            elif sent[own].any():
                self.credit[lane] -= 1
            self.waited_s[lane] = 0.0 if sent[own].any() else self.waited_s[lane] + waits[own].any()
            moved = any(sent[self.of_lane[other]].any() for other in self.beside(lane))
            if sent[own].any() or (moved and self.head[lane] == -2):
                self.head[lane] = -1
        self.credit = np.minimum(self.credit, np.float32(1.0))
        self.quiet_s = np.where(sent, 0.0, np.minimum(self.quiet_s + 1.0, 60.0))

        rate = self.demand.rate_per_s[0].astype(np.float32)
        self.entry += np.floor(rate + (link_words >> 12).astype(np.float32) / np.float32(2**20))
        inserted = np.clip(np.minimum(self.entry, room - entered), 0, network.link_lanes)
        self.entry -= inserted
        self.vehicles += entered + inserted - gone
        self.received.append(entered + inserted)
        self.queued_s += self.queue
        ends = (self.clearing_s > 0) & (self.clearing_s <= 1.0)
        self.phase = np.where(ends, self.target, self.phase)
        self.clearing_s, self.cleared_s = np.maximum(self.clearing_s - 1.0, 0.0), self.cleared_s + 1.0

    def beside(self, lane):
        """Streets have two lanes, those longer than 50 m with changes between them."""
        return [lane ^ 1] if self.network.link_length_m[self.network.lane_link[lane]] >= 50.0 else []

    def full_ahead(self, lane, link):
        """Of a short link, the lane that the first car will want; lanes from which a turn may be made share it."""
        if self.network.link_length_m[link] >= 50.0:
            return False
        upto = 0.0
        for ahead in np.flatnonzero(self.network.lane_link == link):
            before = upto
            for turn in self.network.movement_turn[self.of_lane[ahead]]:
                upto += self.demand.turn_ratio[0, turn] / (self.network.movement_turn == turn).sum()
            if np.float32(before) <= self.luck[lane] / 256 < np.float32(upto):
                return bool(self.queue[self.of_lane[ahead]].sum() >= self.storage(ahead))
        return False

    def storage(self, lane):
        return self.network.link_storage[self.network.lane_link[lane]] / 2

    def join(self, steps, draw):
        """Cars at the end of their link turn, to the lane with the shortest queue, or end their trip."""
        network, ratio = self.network, self.demand.turn_ratio[0]
        length = np.array([self.queue[own].sum() for own in self.of_lane])
        for link in range(network.links):
            now = len(self.received) - steps[link]
            arriving = self.received[now][link] if now >= 0 else 0
            if not arriving:
                continue
            before = total = 0.0
            for turn in np.flatnonzero(network.turn_from == link):
                total += ratio[turn]
                upto = 1.0 if total > 1 - 1e-6 else total
                cars = np.floor(arriving * upto + draw[link]) - np.floor(arriving * before + draw[link])
                movements = np.flatnonzero(network.movement_turn == turn)
                best = movements[np.argmin(length[network.movement_lane[movements]])]
                self.queue[best] += cars
                before = upto
            ended = arriving - np.floor(arriving * before + draw[link])
            self.vehicles[link] -= ended
            self.left += ended

    def level(self, closed, dark):
        network = self.network
        signal = np.maximum(network.movement_signal, 0)
        own = np.arange(network.movements)
        before = network.movement_green[own, self.phase[signal]]
        after = network.movement_green[own, self.target[signal]]
        clears = ((self.clearing_s > 0) & (self.cleared_s >= network.conduct.yellow_use_s))[signal]
        level = np.where(clears & (before != YIELDING), np.minimum(before, after), before)
        level = np.where(dark[signal], PROTECTED, level)
        return np.where(closed[network.movement_to], RED, level)


@pytest.fixture(scope="module")
def runs():
    """Worlds under random phases, some links closed, one signal dark: the fast form, and what it was given."""
    network, demand = generated("city", 6, 1.2, 900.0, seed=5)
    # short of room and of patience, so that both matter within minutes; a sixth of the roads so short that cars come
    # in the lane that they need
    lengths = np.where(np.arange(network.links) % 6, network.link_length_m, 40.0)
    storage = np.full(network.links, 9.0)
    network = replace(network, link_storage=storage, link_length_m=lengths, conduct=Conduct(patience_s=3.0))
    roads, wishes = road_constants(network), demand_constants(network, demand)
    rng = np.random.default_rng(0)
    phases = rng.integers(0, network.phase_count, (DECISIONS, WORLDS, network.signals))
    closed = rng.uniform(size=(WORLDS, network.links)) < 0.05
    dark = np.zeros((WORLDS, network.signals), bool)
    dark[1, 0] = True
    keys = jax.random.split(jax.random.key(7), (DECISIONS, WORLDS))

    def world(state, key, phase, closed, dark):
        normal = Conditions.normal(network.links, network.signals)
        conditions = eqx.tree_at(lambda c: (c.closed, c.dark), normal, (closed, dark))
        state = switched(state, phase, jnp.full(network.signals, 3.0))
        return advance(roads, wishes, state, key, conditions, jnp.ones(()), STEPS)

    def everything(keys, phases):
        start = jax.tree.map(lambda x: jnp.stack([x] * WORLDS), empty_roads(roads, network.signals))
        one = lambda state, row: jax.vmap(world)(state, *row, jnp.asarray(closed), jnp.asarray(dark))  # noqa: E731
        return jax.lax.scan(one, start, (keys, phases))

    state, counts = jax.jit(everything)(keys, jnp.asarray(phases, jnp.int32))
    seeds = jax.random.key_data(keys)
    draw = jax.jit(lambda seed: jnp.stack([drawn(seed, i, network.links + network.lanes) for i in jnp.arange(STEPS)]))
    words = np.stack([np.asarray(draw(seed.T)) for seed in seeds])
    return network, demand, state, counts, phases, closed, dark, words


@pytest.mark.parametrize("world", range(WORLDS))
def test_many_worlds_at_once_do_what_a_plain_loop_does(runs, world):
    network, demand, state, counts, phases, closed, dark, words = runs
    plain = Plain(network, demand, np.zeros(network.signals, int))
    signal = np.zeros(network.lanes, int)
    signal[network.movement_lane] = np.maximum(network.movement_signal, 0)
    flow = np.float32(network.conduct.saturation_per_s) * np.where(dark[world, signal], 0.25, 1.0).astype(np.float32)
    for decision in range(DECISIONS):
        plain.switch(phases[decision, world])
        for step in range(STEPS):
            plain.step(words[decision, step, :, world], closed[world], dark[world], flow)
    assert plain.queued_s.sum() > 100 and min(plain.strangers, plain.pushed, plain.blocked) > 0
    for name in ("queue", "vehicles", "entry", "head", "luck", "credit", "waited_s", "quiet_s", "phase"):
        np.testing.assert_array_equal(getattr(state, name)[world], getattr(plain, name), err_msg=name)
    queued_s = np.bincount(network.movement_from, plain.queued_s, network.links)
    np.testing.assert_array_equal(counts.queued_s[:, world].sum(0), queued_s)
    assert counts.left[:, world].sum() == plain.left


def test_random_words_are_even_and_have_nothing_in_common_between_worlds_steps_and_bits():
    seed = jax.random.key_data(jax.random.split(jax.random.key(1), 64)).T
    words = np.stack([np.asarray(drawn(seed, jnp.asarray(i), 50)) for i in range(4)])
    bits = np.unpackbits(words.reshape(-1, 1).view(np.uint8), axis=1).astype(float)
    # 12,800 words: one standard deviation of a mean is 0.0044
    assert abs(bits.mean(0) - 0.5).max() < 0.022
    between = np.corrcoef(bits.T) - np.eye(32)
    assert abs(between).max() < 0.045
    flat = (words / 2.0**32).reshape(4 * 50, 64)
    for other in (np.roll(flat, 1, 0), np.roll(flat, 1, 1)):
        assert abs(np.corrcoef(flat.ravel(), other.ravel())[0, 1]) < 0.045
    assert len(np.unique(words)) > 0.999 * words.size
