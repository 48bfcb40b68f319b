"""Environments as objects that remember where they stand. Pure functions underneath: `environments/`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt32

from dynamic_graph_fed_rl.buffers.packing import topology_id
from dynamic_graph_fed_rl.environments.base import Observation, Transition
from dynamic_graph_fed_rl.environments.power_grid.environment import PowerGrid
from dynamic_graph_fed_rl.environments.power_grid.state import GridState, conditions
from dynamic_graph_fed_rl.environments.registry import ENVIRONMENTS
from dynamic_graph_fed_rl.environments.traffic.scenarios import SCENARIOS as HOURS
from dynamic_graph_fed_rl.environments.traffic.settings import TrafficSettings
from dynamic_graph_fed_rl.environments.worlds import Worlds
from dynamic_graph_fed_rl.evaluation.evaluate import TRAINING_STREAM, stream_key
from dynamic_graph_fed_rl.faces.play import chosen
from dynamic_graph_fed_rl.objects.graphs import GraphState, Subgraph, as_action

_LATER = ("telecom", "supply_chain")
_MOST_DISTRICTS = 20


@eqx.filter_jit
def _begin(worlds: Worlds, key: PRNGKeyArray) -> tuple[PyTree, Observation, UInt32[Array, " agents"]]:
    state, observation = worlds.begin(worlds.keys(key))
    seen = _only_world(observation)
    return state, seen, topology_id(seen.graph)


@eqx.filter_jit
def _advance(
    worlds: Worlds, key: PRNGKeyArray, state: PyTree, action: Any
) -> tuple[PyTree, Transition, UInt32[Array, " agents"]]:
    state, transition = worlds.advance(worlds.keys(key), state, action[:, None])
    # what agents are told; the metrics are of the world as a whole
    metrics = {name: jnp.mean(value) for name, value in transition.info.get("metrics", {}).items()}
    told = _only_world(eqx.tree_at(lambda t: t.info, transition, {}))
    return state, eqx.tree_at(lambda t: t.info, told, metrics), topology_id(told.observation.graph)


def _only_world(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[:, 0], tree)


def _city(hour: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of traffic for a kind of hour in a generated city."""
    settings = dict(settings)
    signals = settings.pop("num_intersections", TrafficSettings().signals)
    return {"network": "city", "signals": signals, "scenarios": (hour,), "radius": 2} | settings


class DynamicGraphEnv:
    """One world of any of our environments, in which `num_agents` agents act; episodes as training draws them.

    **Arguments:** `scenario` is an environment by name (`dgfrl list`; power_grid and power-grid are one), or a kind
    of hour of traffic (`rush_hour_dynamics`), then in a generated city of `num_intersections` signals, whose agents
    see two signals beyond their districts; `num_agents` by default as many as training has, in such a city 20.
    `time_varying_topology` and `edge_failure_rate` say how often lines fail [per line and hour], or which share of
    the roads is closed at a time. `seed` gives the episodes; `settings` are the environment's own
    (`dgfrl train ENV --help`).

    Agents that have worlds of their own (cartpole, pendulum) are reset together, when the first of these worlds
    ends: the others are then truncated.

    Raises:
        ValueError: what is not known or cannot be, by name.
        NotImplementedError: an environment that is yet to come.
    """

    def __init__(
        self,
        scenario: str = "power_grid",
        num_agents: int | None = None,
        *,
        time_varying_topology: bool = True,
        edge_failure_rate: float | None = None,
        seed: int = 0,
        **settings: Any,
    ):
        name = scenario.replace("_", "-")
        if name not in ENVIRONMENTS and scenario.startswith(_LATER):
            raise NotImplementedError(
                f"scenario '{scenario}': arrives with a later version; there are {', '.join(ENVIRONMENTS)}"
            )
        if scenario in HOURS:
            name, settings = "traffic", _city(scenario, settings)
            num_agents = min(_MOST_DISTRICTS, settings["signals"]) if num_agents is None else num_agents
        if not time_varying_topology and edge_failure_rate:
            raise ValueError(f"edge_failure_rate {edge_failure_rate}: needs time_varying_topology=True")
        if name == "power-grid" and (edge_failure_rate is not None or not time_varying_topology):
            settings["line_failure_rate"] = float(edge_failure_rate or 0.0)
        elif name == "traffic":
            settings |= {"edge_failure_rate": edge_failure_rate, "time_varying_topology": time_varying_topology}
        elif edge_failure_rate is not None:
            raise ValueError(f"edge_failure_rate {edge_failure_rate}: no edge of '{scenario}' can fail")
        environment, owners = chosen(name, num_agents, None, settings)
        self.name = name
        self.radius = settings.get("radius", getattr(ENVIRONMENTS[name].settings(), "radius", None))
        self._worlds = Worlds(environment, 1, owners)
        self._seed, self._episode, self._decision = seed, -1, 0
        self._world: PyTree = None
        self._state: GraphState | None = None
        self._topology = np.zeros(0, np.uint32)

    @property
    def spec(self) -> Any:
        """Shapes, names and units of what an agent sees and does."""
        return self._worlds.spec

    @property
    def num_agents(self) -> int:
        return self._worlds.agents

    @property
    def node_feature_dim(self) -> int:
        return len(self.spec.node_features)

    @property
    def edge_feature_dim(self) -> int:
        return len(self.spec.edge_features)

    @property
    def action_dim(self) -> int:
        """Numbers, or choices, of each action slot."""
        return self.spec.action_size

    @property
    def max_steps(self) -> int:
        """Decisions of an episode that nothing ends early."""
        return self.spec.episode_decisions

    @property
    def state(self) -> GraphState:
        """What all agents see now; the first episode begins by itself."""
        return self.reset() if self._state is None else self._state

    def reset(self) -> GraphState:
        """The next episode."""
        self._episode, self._decision = self._episode + 1, 0
        self._world, seen, topology = _begin(self._worlds, self._key())
        self._topology = np.asarray(topology)
        never = [False] * self.num_agents
        self._state = GraphState(jax.device_get(seen), self.spec, never, never)
        return self._state

    def step(self, actions: Mapping[int, Any]) -> tuple[GraphState, dict[int, float], bool, dict[str, Any]]:
        """One decision of all agents: what they see then, their rewards, whether the episode is over, and `info`.

        `info` has `topology_changed` (of any agent's view), `terminated` and `truncated` by agent, `costs` by agent
        and name, and the world's `metrics` by name.

        Raises:
            ValueError: an agent without an action, an action of another shape, or an episode that is over.
        """
        before = self.state
        agents = range(self.num_agents)
        if any(before.terminated) or any(before.truncated):
            raise ValueError("step: the episode is over; call reset()")
        if set(actions) != set(agents):
            raise ValueError(f"actions of agents {sorted(actions)}: must be of all {self.num_agents}, counted from 0")
        rows = np.stack([as_action(actions[agent], before.get_subgraph(agent)) for agent in agents])
        self._decision += 1
        self._world, transition, topology = _advance(self._worlds, self._key(), self._world, rows)
        transition, topology = jax.device_get((transition, topology))
        done = bool((transition.terminated | transition.truncated).any())
        terminated = transition.terminated.tolist()
        truncated = [done and not ended for ended in terminated]
        self._state = GraphState(transition.observation, self.spec, terminated, truncated)
        changed, self._topology = bool((topology != self._topology).any()), topology
        costs = [column.name for column in self.spec.costs]
        info = {
            "topology_changed": changed,
            "terminated": dict(enumerate(terminated)),
            "truncated": dict(enumerate(truncated)),
            "costs": {agent: dict(zip(costs, transition.cost[agent].tolist(), strict=True)) for agent in agents},
            "metrics": {name: float(value) for name, value in transition.info.items()},
        }
        return self._state, dict(enumerate(transition.reward.tolist())), done, info

    def get_local_view(self, agent_id: int, radius: int | None = None) -> Subgraph:
        """What an agent sees now: its region and `radius` hops around it.

        The radius is the environment's, so that what an agent learns from has one shape; an environment without one
        shows the whole.

        Raises:
            ValueError: another radius than the environment's, or no such agent.
        """
        if radius is not None and self.radius is not None and radius != self.radius:
            raise ValueError(f"radius {radius}: this environment shows {self.radius}; make it with radius={radius}")
        return self.state.get_subgraph(agent_id)

    def _key(self) -> PRNGKeyArray:
        episode = jax.random.fold_in(stream_key(TRAINING_STREAM, self._seed), self._episode)
        return jax.random.fold_in(episode, self._decision)


@dataclass(frozen=True)
class Stability:
    """Where a grid stands: loading of its worst line (1 is the rating), voltages of its live buses [p.u.], lines out
    of service, buses cut off, load not served and losses [MW], and whether it is dark."""

    max_line_loading: float
    min_voltage_pu: float
    max_voltage_pu: float
    lines_out: int
    buses_out: int
    unserved_mw: float
    losses_mw: float
    blackout: bool

    @property
    def frequency_nadir(self) -> float:
        """
        Raises:
            NotImplementedError: always; the grid is quasi-stationary, its frequency is not simulated yet.
        """
        raise NotImplementedError(
            "frequency_nadir: frequency is not simulated yet; there are max_line_loading, min_voltage_pu, "
            "max_voltage_pu, lines_out, buses_out, unserved_mw, losses_mw and blackout"
        )


class PowerGridEnv(DynamicGraphEnv):
    """A transmission grid with wind and solar farms.

    **Arguments:** `grid_config` is a case (ieee_118_bus and ieee118 are one) or a path to a MATPOWER file;
    `renewable_penetration` the share of a normal day's energy that the farms can deliver; `demand_variation`
    "realistic", or the path of a CSV file of loads, wind and solar. `settings` as in `DynamicGraphEnv`.

    Raises:
        ValueError: what is not known or cannot be, by name; also `weather_dynamics=False`, as farms follow the
            weather.
    """

    def __init__(
        self,
        grid_config: str = "ieee_118_bus",
        renewable_penetration: float = 0.2,
        weather_dynamics: bool = True,
        demand_variation: str = "realistic",
        num_agents: int | None = None,
        **settings: Any,
    ):
        if not weather_dynamics:
            raise ValueError("weather_dynamics False: farms follow the weather; it cannot be switched off")
        case = re.fullmatch(r"ieee_(\d+)_bus", grid_config)
        settings["case"] = f"ieee{case[1]}" if case else grid_config
        settings["renewable_share"] = float(renewable_penetration)
        if demand_variation != "realistic":
            settings["profiles"] = demand_variation
        super().__init__("power_grid", num_agents, **settings)

    def get_renewable_forecast(self, horizon: int = 24) -> Float[np.ndarray, " horizon"]:
        """Output [MW] that all farms together can be expected to deliver in 1, 2, ... `horizon` hours.

        Raises:
            ValueError: a horizon below 1.
        """
        if horizon < 1:
            raise ValueError(f"horizon {horizon}: must be at least 1 hour")
        grid, state = self._grid()
        return np.asarray(_forecast(grid, state, horizon))

    def evaluate_stability(self) -> Stability:
        """Where the grid stands after the last decision."""
        grid, state = self._grid()
        network = jax.device_get(state.network)
        live = network.voltage[network.live]
        demand = float((np.asarray(grid.grid.load_mw) * np.asarray(state.level)).sum())
        return Stability(
            max_line_loading=float(network.loading.max()),
            min_voltage_pu=float(live.min(initial=np.inf)),
            max_voltage_pu=float(live.max(initial=-np.inf)),
            lines_out=int((np.asarray(grid.grid.flow.closed) & ~network.closed).sum()),
            buses_out=int((~network.live).sum()),
            unserved_mw=max(demand - float(network.served_mw.sum()), 0.0),
            losses_mw=float(network.losses_mw),
            blackout=bool(network.dark),
        )

    def _grid(self) -> tuple[PowerGrid, GridState]:
        grid = self._worlds.environment
        assert self.state is not None and isinstance(grid, PowerGrid)
        return grid, jax.tree.map(lambda leaf: leaf[0], self._world)


@eqx.filter_jit
def _forecast(grid: PowerGrid, state: GridState, horizon: int) -> Float[Array, " horizon"]:
    def ahead(minutes: float) -> Float[Array, ""]:
        weather = state.weather.expected(minutes, grid.units.wind)
        _, available = conditions(grid.units, grid.profiles, state.kind, weather, state.day, state.minute + minutes)
        return jnp.where(grid.units.farm, available, 0.0).sum()

    return jnp.stack([ahead(60.0 * hour) for hour in range(1, horizon + 1)])
