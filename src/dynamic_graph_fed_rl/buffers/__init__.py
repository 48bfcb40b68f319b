"""Graph-temporal replay: experience kept small, drawn row by row, in windows, or from where memory is known."""

from typing import TYPE_CHECKING

from dynamic_graph_fed_rl.objects import offered

if TYPE_CHECKING:
    from dynamic_graph_fed_rl.objects.buffers import GraphTemporalBuffer as GraphTemporalBuffer

__getattr__ = offered(__name__, "GraphTemporalBuffer")
