"""Cars under way: how many reach the end of their link in the next step, the one after it, and so on.

Links stand in the order of the steps they take, in two groups: a row for every step of the longest one would be empty
on most links.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8, UInt16

Coming = tuple[UInt8[Array, "_ _"], ...]
"""`[ahead, links]` of each group: the cars in each of the steps ahead."""
Left = tuple[UInt8[Array, "_ _"] | UInt16[Array, "_ _"], ...]
"""`[ahead, links]` of each group: the steps that its links take beyond those ahead; at least 0."""


def steps_left(steps: Int[np.ndarray, " links"]) -> Left:
    """Of the two groups, cut where they hold the fewest numbers; one, if all links take as long."""
    ordered = np.sort(steps)
    cuts = np.flatnonzero(np.diff(ordered)) + 1
    held = [cut * ordered[cut - 1] + (len(ordered) - cut) * ordered[-1] for cut in cuts]
    groups = np.split(ordered, [cuts[np.argmin(held)]] if len(cuts) else [])
    left = [np.maximum(group - np.arange(group.max())[:, None], 0) for group in groups]
    return tuple(jnp.asarray(each, jnp.uint8 if each.max() < 256 else jnp.uint16) for each in left)


def nobody(left: Left) -> Coming:
    return tuple(jnp.zeros(group.shape, jnp.uint8) for group in left)


def due(coming: Coming, steps: int) -> UInt8[Array, "steps ordered"]:
    """Cars that reach the end of their link in each of the next steps."""
    padded = [jnp.pad(group[:steps], ((0, max(steps - group.shape[0], 0)), (0, 0))) for group in coming]
    return jnp.concatenate(padded, axis=1)


def within(coming: Coming, steps: int) -> Float[Array, " ordered"]:
    """Cars that reach the end of their link in the next steps, together."""
    return jnp.concatenate([sum(row.astype(jnp.float32) for row in group[:steps]) for group in coming])


def later(left: Left, coming: Coming, received: UInt8[Array, "steps ordered"]) -> Coming:
    """Time goes on by the steps in which the links received cars."""
    steps, first, after = received.shape[0], 0, []
    for away, group in zip(left, coming, strict=True):
        rows, links = group.shape
        own = received[:, first : first + links]
        moved = jnp.pad(group[steps:], ((0, min(steps, rows)), (0, 0)))
        for i in range(max(steps - rows, 0), steps):
            moved = jnp.where(away == steps - i, own[i], moved)
        after.append(moved)
        first += links
    return tuple(after)
