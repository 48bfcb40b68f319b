"""How signals are controlled today: rules from what detectors tell to the phase wanted next, one a signal.

They run unchanged in the dynamics and in SUMO. What they may not do (leave a green before its minimum, cut a yellow
short) is seen to by the simulators.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from dynamic_graph_fed_rl.environments.traffic.network import RED, Demand, Network
from dynamic_graph_fed_rl.environments.traffic.sensing import Sensed, SignalConstants


class Rule(eqx.Module):
    """A rule for all signals of one world."""

    signals: SignalConstants

    def initial(self) -> PyTree:
        """What it remembers before the first look."""
        return None

    @abc.abstractmethod
    def wanted(self, memory: PyTree, sensed: Sensed) -> tuple[Int[Array, " signals"], PyTree]: ...


class Program(eqx.Module):
    """Green and clearance times [s] of a plan, and its offsets."""

    green_s: Float[Array, "signals phases"]
    clearance_s: Float[Array, "signals phases"]
    offset_s: Float[Array, " signals"]

    @staticmethod
    def of(network: Network) -> "Program":
        return Program(
            *(jnp.asarray(x, jnp.float32) for x in (network.program_s, network.clearance_s, network.offset_s))
        )


def plan_phases(plan: Program, time_s: Float[Array, "*times"]) -> Int[Array, "*times signals"]:
    """The phase that a plan wants at these times: the next one from the moment on at which the one before begins to
    clear. A phase without green time is left out."""
    used = plan.green_s > 0
    end = jnp.cumsum(jnp.where(used, plan.green_s + plan.clearance_s, 0.0), axis=1)
    at = jnp.mod(time_s[..., None] - plan.offset_s, end[:, -1])[..., None]
    ahead = used & (at < end - plan.clearance_s)
    first = jnp.argmax(used, axis=1)
    return jnp.where(ahead.any(-1), jnp.argmax(ahead, axis=-1), first).astype(jnp.int32)


class FixedTime(Rule):
    """A fixed plan: each phase for its time, one after the other."""

    program: Program

    def wanted(self, memory: None, sensed: Sensed) -> tuple[Int[Array, " signals"], None]:
        return plan_phases(self.program, sensed.time_s), None


class Actuated(Rule):
    """Phases in turn; a green goes on while cars come, from its minimum to its maximum."""

    most_s: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=50.0)

    def wanted(self, memory: None, sensed: Sensed) -> tuple[Int[Array, " signals"], None]:
        own = self.signals
        near = (sensed.link_near / own.link_lane_count)[own.lane_link]
        busy = own.by_phase(own.phase_first_lanes.sum(near)) > 0
        served = jnp.take_along_axis(busy, sensed.phase[:, None], axis=1)[:, 0]
        following = jnp.mod(sensed.phase + 1, own.phase_mask.sum(1))
        stay = served & (sensed.phase_s < self.most_s)
        return jnp.where(stay, sensed.phase, following).astype(jnp.int32), None


class SelfOrganising(Rule):
    """SOTL (Gershenson 2005): red time times cars that come or wait is added up; the phase with most of it turns
    green once that passes a threshold, unless a small platoon is just crossing. The numbers are those that did best
    in the dynamics on a generated grid, cologne8 and ingolstadt7."""

    threshold: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=25.0)
    platoon: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=1.0)

    def initial(self) -> tuple[Float[Array, "signals phases"], Float[Array, ""]]:
        return jnp.zeros(self.signals.phase_mask.shape), jnp.zeros(())

    def wanted(self, memory: PyTree, sensed: Sensed) -> tuple[Int[Array, " signals"], PyTree]:
        own = self.signals
        gathered, then_s = memory
        on_lanes = lambda cars: own.phase_lanes.sum((cars / own.link_lane_count)[own.lane_link])  # noqa: E731
        queue = own.by_phase(own.phase_lanes.sum(own.standing(sensed).lane))
        coming, crossing = own.by_phase(on_lanes(sensed.link_arriving)), own.by_phase(on_lanes(sensed.link_near))
        now = jnp.arange(own.phases) == sensed.phase[:, None]
        gathered = jnp.where(now, 0.0, gathered + (queue + coming) * (sensed.time_s - then_s))
        fullest = jnp.argmax(jnp.where(own.phase_mask, gathered, -1.0), axis=1)
        over = gathered.max(1) >= self.threshold
        platoon = jnp.where(now, crossing, 0.0).sum(1)
        leave = over & ~((platoon > 0) & (platoon <= self.platoon))
        return jnp.where(leave, fullest, sensed.phase).astype(jnp.int32), (gathered, sensed.time_s)


class Scored(Rule):
    """The phase with the highest score; of equals the present one."""

    @abc.abstractmethod
    def score(self, sensed: Sensed) -> Float[Array, "signals phases"]: ...

    def wanted(self, memory: None, sensed: Sensed) -> tuple[Int[Array, " signals"], None]:
        own = self.signals
        score = jnp.where(own.phase_mask, self.score(sensed), -jnp.inf)
        present = jnp.take_along_axis(score, sensed.phase[:, None], axis=1)[:, 0]
        best = jnp.argmax(score, axis=1)
        return jnp.where(score.max(1) > present, best, sensed.phase).astype(jnp.int32), None


class LongestQueue(Scored):
    """The phase whose lanes hold most standing cars."""

    def score(self, sensed: Sensed) -> Float[Array, "signals phases"]:
        return self.signals.by_phase(self.signals.phase_lanes.sum(self.signals.standing(sensed).lane))


class MaxPressure(Scored):
    """The phase of most pressure (Varaiya 2013), movement by movement, of each the positive part."""

    def score(self, sensed: Sensed) -> Float[Array, "signals phases"]:
        own = self.signals
        return own.by_phase(own.phase_movements.sum(own.pressure(own.standing(sensed), sensed)))


class SummedPressure(Scored):
    """Cars that stand before a phase less those that stand behind it, without the positive part: a full link ahead
    speaks against all movements of a phase, also against those that lead elsewhere. For comparison."""

    def score(self, sensed: Sensed) -> Float[Array, "signals phases"]:
        own = self.signals
        standing = own.standing(sensed)
        each = standing.lane[own.movement_lane] - standing.link[own.movement_to]
        return own.by_phase(own.phase_movements.sum(each))


def lane_flow_per_s(network: Network, demand: Demand) -> Float[np.ndarray, " lanes"]:
    """Mean flow that each lane must serve, if nothing holds it up and turns spread evenly over their lanes."""
    ratio, rate = demand.turn_ratio.mean(0), demand.rate_per_s.mean(0)
    onward = np.zeros((network.links, network.links))
    onward[network.turn_to, network.turn_from] = ratio
    link = np.linalg.solve(np.eye(network.links) - onward, rate)
    turn = link[network.turn_from] * ratio
    share = np.bincount(network.movement_turn, minlength=len(turn))
    return np.bincount(network.movement_lane, (turn / share)[network.movement_turn], minlength=network.lanes)


def critical_ratios(network: Network, demand: Demand) -> list[Float[np.ndarray, " phases"]]:
    """For each signal and phase the share of all time that its busiest lane needs green."""
    flow = lane_flow_per_s(network, demand) / network.conduct.saturation_per_s
    ratios = []
    for s, count in enumerate(network.phase_count):
        controlled = network.movement_signal == s
        lanes = [
            np.unique(network.movement_lane[controlled & (network.movement_green[:, k] > RED)]) for k in range(count)
        ]
        # a lane that several phases serve needs its green in them together
        served = np.bincount(np.concatenate(lanes), minlength=network.lanes)
        ratios.append(np.array([max((flow[lane] / served[lane] for lane in own), default=0.0) for own in lanes]))
    return ratios


def critical_loads(network: Network, demand: Demand) -> Float[np.ndarray, " signals"]:
    """Share of all time that each signal's phases need green, one after the other; 1 is more than it can give."""
    return np.array([ratio.sum() for ratio in critical_ratios(network, demand)])


def webster(
    network: Network,
    demand: Demand,
    decision_s: float = 5.0,
    shortest_s: float = 5.0,
    longest_cycle_s: float = 120.0,
) -> Program:
    """Cycle and splits after Webster (1958), "Traffic signal settings": C = (1.5 L + 5) / (1 - Y), greens in
    proportion to the critical flow ratios y.

    Phases begin at decisions: a green with its clearance takes whole decisions, or short ones would be skipped.
    """
    green = np.zeros_like(network.program_s)
    for s, critical in enumerate(critical_ratios(network, demand)):
        count, load = len(critical), critical.sum()
        lost = (network.clearance_s[s, :count] + network.conduct.lost_s - network.conduct.yellow_use_s).sum()
        cycle = (1.5 * lost + 5.0) / (1.0 - min(load, 0.9))
        split = critical / load if load > 0 else np.full(count, 1.0 / count)
        clearance = network.clearance_s[s, :count]
        wished = np.maximum(split * (min(cycle, longest_cycle_s) - lost), shortest_s) + clearance
        least = np.ceil((shortest_s + clearance) / decision_s)
        green[s, :count] = np.maximum(np.round(wished / decision_s), least) * decision_s - clearance
    plan = Program.of(network)
    free = jnp.zeros(network.signals)
    return eqx.tree_at(lambda p: (p.green_s, p.offset_s), plan, (jnp.asarray(green, jnp.float32), free))
