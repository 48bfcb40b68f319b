"""What travels: chosen parameters of every agent as one vector, whatever group it belongs to."""

import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Chosen = Callable[[str], bool]

_TRUNK = r"(^|\.)(encoder|memory)(\.|$)"


def everything(path: str) -> bool:
    """All parameters of policy and critic."""
    return True


def matching(pattern: str) -> Chosen:
    """Parameters by name: `all`, `trunk` (encoder and memory), or a regular expression searched for in the path.

    Raises:
        ValueError: not a regular expression.
    """
    if pattern == "all":
        return everything
    try:
        expression = re.compile(_TRUNK if pattern == "trunk" else pattern)
    except re.error as error:
        raise ValueError(f"share '{pattern}': must be all, trunk or a regular expression: {error}") from error
    return lambda path: expression.search(path) is not None


def _named(shared: PyTree) -> dict[str, Array]:
    """Leaves by their paths, such as `encoder.layers[0].weight`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(shared)
    return {jax.tree_util.keystr(path).removeprefix("."): leaf for path, leaf in leaves}


def to_vectors(groups: Sequence[PyTree], chosen: Chosen) -> Float[Array, "agents size"]:
    """The chosen leaves of every group's agents `[A_group, ...]`, an agent's in one row.

    Raises:
        ValueError: nothing is chosen (lists the paths there are), or groups differ in what is (names it).
    """
    parts, first = [], {}
    for shared in groups:
        named = _named(shared)
        kept = {name: leaf for name, leaf in named.items() if chosen(name)}
        if not kept:
            raise ValueError(f"share: matches no parameter; there are {', '.join(named)}")
        shapes = {name: leaf.shape[1:] for name, leaf in kept.items()}
        first = first or shapes
        if shapes != first:
            unlike = sorted(name for name, _ in set(shapes.items()) ^ set(first.items()))
            raise ValueError(f"share: groups differ in {', '.join(unlike)}; choose what all of them have alike")
        parts.append(jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in kept.values()], axis=1))
    return jnp.concatenate(parts).astype(jnp.float32)


def from_vectors(vectors: Float[Array, "agents size"], groups: Sequence[PyTree], chosen: Chosen) -> list[PyTree]:
    """The groups with their chosen leaves taken from the rows: the inverse of `to_vectors`."""
    result, row = [], 0
    for shared in groups:
        leaves, structure = jax.tree.flatten(shared)
        agents = leaves[0].shape[0]
        rows, begin = vectors[row : row + agents], 0
        row += agents
        for i, (name, leaf) in enumerate(_named(shared).items()):
            if chosen(name):
                size = leaf.size // agents
                leaves[i] = rows[:, begin : begin + size].reshape(leaf.shape).astype(leaf.dtype)
                begin += size
        result.append(jax.tree.unflatten(structure, leaves))
    return result
