"""How cars conduct themselves on networks that have been compared with SUMO, and cities read with it."""

from dataclasses import replace
from pathlib import Path

from dynamic_graph_fed_rl.environments.traffic.demand import read_demand, vehicle_space_m
from dynamic_graph_fed_rl.environments.traffic.joining import read_network
from dynamic_graph_fed_rl.environments.traffic.network import Conduct, Demand, Network

CONDUCTS = {
    "cologne3": Conduct(0.48, lost_s=0.91, yellow_use_s=0.26, cruise=0.9, gap_s=4.61, patience_s=20.0),
    "cologne8": Conduct(0.45, lost_s=2.85, yellow_use_s=1.55, cruise=0.81, gap_s=6.3, patience_s=116.0),
    "ingolstadt7": Conduct(0.36, lost_s=1.81, yellow_use_s=2.00, cruise=0.84, gap_s=3.0, patience_s=115.0),
}
"""Found for the least mean |log(delay / SUMO's delay)| under the file's plan and plans drawn with seed 1, by random
searches (`python -m dynamic_graph_fed_rl.environments.traffic.study calibrate NETWORK`); that of cologne8 with an
earlier version of the dynamics. Others have the default."""


def read_city(net: Path, routes: Path, begin_s: float, duration_s: float = 3600.0) -> tuple[Network, Demand]:
    """A network with the cars that drive on it and their conduct, and the demand of these routes.

    Raises:
        ValueError: as `read_network` and `read_demand`.
    """
    network = read_network(net, vehicle_space_m(routes))
    network = replace(network, conduct=CONDUCTS.get(network.name, network.conduct))
    return network, read_demand(network, routes, begin_s, duration_s)
