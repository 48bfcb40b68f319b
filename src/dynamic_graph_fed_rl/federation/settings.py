"""What a user may set about an exchange; no jax import, so that the command line stays quick."""

from dataclasses import dataclass
from typing import Literal

from dynamic_graph_fed_rl.federation.aggregators.settings import AggregatorSettings

FEDERATIONS = {
    "server": "a server aggregates the agents' updates and sends its model to those that took part",
    "tree": "servers of servers: each level aggregates on a clock of its own",
    "gossip": "no server: each agent aggregates what the neighbours that the overlay gives it hold",
    "shared": "agents send their experience to a server, whose learner learns for all of them",
    "hybrid": "agents and the server's learner learn, from their own and from all experience, and are averaged",
    "independent": "agents keep what they learn to themselves",
    "centralised": "one learner sees and controls the whole network (no federation; for comparison)",
}

POOLED = ("shared", "hybrid")
"""Federations in which experience leaves the agents."""


@dataclass(frozen=True)
class FederationSettings(AggregatorSettings):
    """Who exchanges what with whom, when, and how it is protected."""

    overlay: str = "ring"
    """Who hears whom under gossip (`dgfrl list`), or a CSV file of an agents x agents matrix of 0 and 1 (row hears
    column)."""
    degree: int = 2
    """How many others an agent hears on a random overlay."""
    link_failure: float = 0.0
    """Probability that a link of the overlay is down in a round."""
    allow_disconnected: bool = False
    """Accept an overlay that falls into parts that never hear each other."""
    gossip_step: float = 1.0
    """Share of the way to the neighbours' aggregate that a gossiping agent goes; below 1 for coarse codecs."""
    branches: tuple[int, ...] = ()
    """Aggregation points of a tree's levels below the root, from the top, such as 5 20 for 100 agents."""
    clocks: tuple[int, ...] = ()
    """Rounds between the exchanges of a tree's levels, from the leaves up, such as 1 4 16; default: always."""
    server_optimiser: Literal["plain", "momentum", "adam"] = "plain"
    """What a server does with the aggregated update (Reddi et al. 2021)."""
    server_momentum: float = 0.9
    """Share of the last step that the server's optimiser momentum keeps."""
    server_learning_rate: float = 1.0
    """Step size of the server's optimiser."""
    server_rate_schedule: Literal["constant", "cosine"] = "constant"
    """Course of that step size over the run."""
    server_updates: int = 0
    """Gradient steps a round of a server's learner from pooled experience; 0: one for each decision of an agent."""
    server_share: float = 0.5
    """Weight of a server's learner in the hybrid mean, of 1 for it and the agents together."""
    screen: Literal["none", "mean-distance", "nearest"] = "none"
    """Which experience a server's learner keeps: all, or what lies far from what it has."""
    screen_threshold: float = 0.15
    """Distance from which the screen lets experience pass."""
    screen_compared: int = 32
    """Kept observations, drawn at random, that the screen compares with."""
    schedule: Literal["synchronous", "asynchronous"] = "synchronous"
    """Wait for the slowest agent, or take each update when it is ready, on a virtual clock."""
    step_times: tuple[float, ...] = ()
    """Ticks of the virtual clock that each agent needs for a round of learning; default: 1 each."""
    staleness_power: float = 0.5
    """An update that s versions have overtaken weighs (1 + s) to the minus this."""
    buffer: int = 1
    """Updates that a server waits for before it aggregates them (FedBuff, Nguyen et al. 2022)."""
    dropout: float = 0.0
    """Share of agents that is absent from a round."""
    absence_rounds: float = 1.0
    """Mean length of an absence [rounds]."""
    joins: tuple[int, ...] = ()
    """Round in which each agent joins; default: 0, the first."""
    leaves: tuple[int, ...] = ()
    """Round in which each agent leaves for good; default: never."""
    agent_weights: tuple[float, ...] = ()
    """Weight of each agent's update, such as its number of examples; default: 1 each."""
    share: str = "all"
    """What travels: all parameters of policy and critic, trunk (the encoder), or a regular expression that is
    searched for in the parameters' paths."""
    codec: str = "raw"
    """How an update is made small (`dgfrl list`)."""
    kept_share: float = 0.1
    """Share of the numbers that the codec top-k sends."""
    privacy: Literal["none", "dp", "secure"] = "none"
    """Client-level differential privacy (clipping and Gaussian noise), or masks that hide single updates."""
    dp_clip: float = 1.0
    """Norm to which each agent's update is clipped under differential privacy."""
    dp_noise: float = 1.0
    """Standard deviation of the noise on the sum of updates, over the clipping norm."""
    dp_delta: float = 1e-5
    """Probability with which the privacy bound epsilon may fail."""
    byzantine: int = 0
    """Agents that attack, the last ones; for experiments on robustness."""
    attack: str = "sign-flip"
    """What those agents send instead of their updates (`dgfrl list`)."""
