"""How one agent learns: pure functions, one file an algorithm; and the agents for loops of one's own."""

from typing import TYPE_CHECKING

from dynamic_graph_fed_rl.objects import offered

if TYPE_CHECKING:
    from dynamic_graph_fed_rl.objects.agents import GraphPPO as GraphPPO
    from dynamic_graph_fed_rl.objects.agents import GraphSAC as GraphSAC
    from dynamic_graph_fed_rl.objects.agents import GraphTD3 as GraphTD3

__getattr__ = offered(__name__, "GraphPPO", "GraphSAC", "GraphTD3")
