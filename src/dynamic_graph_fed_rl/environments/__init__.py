"""Markov games on networks, one folder a domain; and the environments for loops of one's own."""

from typing import TYPE_CHECKING

from dynamic_graph_fed_rl.objects import offered

if TYPE_CHECKING:
    from dynamic_graph_fed_rl.objects.environments import DynamicGraphEnv as DynamicGraphEnv
    from dynamic_graph_fed_rl.objects.environments import PowerGridEnv as PowerGridEnv

__getattr__ = offered(__name__, "DynamicGraphEnv", "PowerGridEnv")
