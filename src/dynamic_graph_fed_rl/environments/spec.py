"""What is known of an environment before anything is compiled: shapes, names and units. No jax import."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Column:
    """One feature or action: its name, its unit, and whether it is dynamic.

    What is not dynamic is the same in every episode and every world of an agent, for as long as its node, edge or
    slot is there: replay keeps it once.
    """

    name: str
    unit: str = "1"
    dynamic: bool = True


@dataclass(frozen=True)
class Metric:
    """One figure that an episode is judged by."""

    name: str
    label: str
    unit: str = ""
    lower_is_better: bool = True

    @property
    def title(self) -> str:
        """Label and unit, for axes and column heads."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True)
class Spec:
    """Shapes, names and units of an environment; known before anything is compiled.

    **Fields:** `agents` A, `nodes` N and `edges` E of a local graph, `slots` S actions an agent, `action_size`
    D numbers in [-1, 1] a slot (continuous) or K choices a slot (discrete); `choice_features` what is known of each
    choice, where choices differ by nothing else: `slot_features` are then these, choice after choice; `costs` the C
    constraint signals; `steps_per_decision` world steps that one call of `step` runs through; `episode_decisions`
    decisions in a full episode.
    """

    agents: int
    nodes: int
    edges: int
    slots: int
    action: Literal["continuous", "discrete"]
    action_size: int
    node_features: tuple[Column, ...]
    edge_features: tuple[Column, ...] = ()
    global_features: tuple[Column, ...] = ()
    slot_features: tuple[Column, ...] = ()
    choice_features: tuple[Column, ...] = ()
    costs: tuple[Column, ...] = ()
    metrics: tuple[Metric, ...] = ()
    headline: str = ""
    steps_per_decision: int = 1
    episode_decisions: int = 1
