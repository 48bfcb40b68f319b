"""Networks over graphs of any size, and what their nodes remember."""

from typing import TYPE_CHECKING

from dynamic_graph_fed_rl.objects import offered

if TYPE_CHECKING:
    from dynamic_graph_fed_rl.objects.models import MultiScaleTemporalGNN as MultiScaleTemporalGNN

__getattr__ = offered(__name__, "MultiScaleTemporalGNN")
