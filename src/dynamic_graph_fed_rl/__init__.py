"""Federated reinforcement learning for networks that keep changing."""

from typing import TYPE_CHECKING

from dynamic_graph_fed_rl.objects import offered

if TYPE_CHECKING:
    from dynamic_graph_fed_rl.objects.environments import DynamicGraphEnv as DynamicGraphEnv
    from dynamic_graph_fed_rl.objects.federation import FederatedActorCritic as FederatedActorCritic
    from dynamic_graph_fed_rl.objects.federation import FederatedHierarchy as FederatedHierarchy
    from dynamic_graph_fed_rl.objects.federation import FederatedOptimizer as FederatedOptimizer
    from dynamic_graph_fed_rl.objects.graphs import GraphTransition as GraphTransition

__version__ = "0.1.0"

__getattr__ = offered(
    __name__, "DynamicGraphEnv", "FederatedActorCritic", "FederatedHierarchy", "FederatedOptimizer", "GraphTransition"
)
