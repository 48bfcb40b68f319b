"""An environment's specification as Gymnasium spaces. Needs the extra `gym`."""

from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Num

from dynamic_graph_fed_rl.environments.spec import Spec


def observation_space(spec: Spec, flat: bool, agents: int | None = None) -> spaces.Space[Any]:
    """What one agent sees, or with `agents` what so many see together (a leading axis; flat: one after the other).

    Flat is one vector of nodes, edges, globals and slots. Otherwise a Dict of the graph's parts; the mask of slots is
    `action_mask` where the action space is Discrete, as others expect it there, and `slot_mask` elsewhere.
    """
    lead = () if agents is None else (agents,)
    shapes = {
        "nodes": (spec.nodes, len(spec.node_features)),
        "edges": (spec.edges, len(spec.edge_features)),
        "globals": (len(spec.global_features),),
        "slots": (spec.slots, len(spec.slot_features)),
    }
    if flat:
        numbers = sum(int(np.prod(shape)) for shape in shapes.values())
        return spaces.Box(-np.inf, np.inf, (numbers * (agents or 1),), np.float32)
    parts: dict[str, spaces.Space[Any]] = {
        name: spaces.Box(-np.inf, np.inf, lead + shape, np.float32) for name, shape in shapes.items()
    }
    slots = (spec.slots,) if spec.action == "continuous" else (spec.slots, spec.action_size)
    masks = {"node_mask": (spec.nodes,), "edge_mask": (spec.edges,), "births": (spec.nodes,)}
    for name, shape in masks.items():
        parts[name] = spaces.Box(0, 1, lead + shape, np.int8)
    name = mask_name(spec, agents)
    parts[name] = spaces.Box(0, 1, slots[1:] if name == "action_mask" else lead + slots, np.int8)
    for name in ("senders", "receivers"):
        parts[name] = spaces.Box(0, max(spec.nodes - 1, 0), (*lead, spec.edges), np.int32)
    # N stands for the graph as a whole
    parts["slot_owner"] = spaces.Box(0, spec.nodes, (*lead, spec.slots), np.int32)
    return spaces.Dict({name: space for name, space in parts.items() if np.prod(space.shape or ())})


def mask_name(spec: Spec, agents: int | None = None) -> str:
    """What the mask of slots is called."""
    return "action_mask" if spec.action == "discrete" and spec.slots * (agents or 1) == 1 else "slot_mask"


def action_space(spec: Spec, agents: int | None = None) -> spaces.Space[Any]:
    """Box `[S * D]` within [-1, 1], or Discrete or MultiDiscrete; with `agents` for so many in a row."""
    slots = spec.slots * (agents or 1)
    if spec.action == "continuous":
        return spaces.Box(-1.0, 1.0, (slots * spec.action_size,), np.float32)
    return spaces.Discrete(spec.action_size) if slots == 1 else spaces.MultiDiscrete([spec.action_size] * slots)


def as_action(space: spaces.Space[Any], action: Any, lead: tuple[int, ...] = ()) -> Num[np.ndarray, "..."]:
    """An action as the environment takes it.

    Raises:
        ValueError: another shape than the space's.
    """
    values = np.asarray(action, np.float32 if isinstance(space, spaces.Box) else np.int32)
    if values.shape != lead + (space.shape or ()):
        raise ValueError(f"action of shape {values.shape}: must be {lead + (space.shape or ())}, of {space}")
    return values
