"""What a user may set about an exchange; no jax import, so that the command line stays quick."""

from dataclasses import dataclass
from typing import Literal

from dynamic_graph_fed_rl.federation.aggregators.settings import AggregatorSettings

FEDERATIONS = {
    "server": "a server aggregates the agents' updates and sends its model to those that took part",
    "tree": "servers of servers: each level aggregates on a clock of its own",
    "gossip": "no server: each agent aggregates what the neighbours that the overlay gives it hold",
    "independent": "agents keep what they learn to themselves",
    "centralised": "one learner sees and controls the whole network (no federation; for comparison)",
}


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
