"""Order statistics over the agents by a sorting network: pairs of minimum and maximum, each over a whole row.

A library sort along the leading axis is some hundred times slower on CPU.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dynamic_graph_fed_rl.federation.aggregators.base import product

# beyond it the comparators are a loop over stages: slower, but the program stays small for any number of agents
_UNROLLED = 32


@cache
def network(size: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Batcher's merge exchange (Knuth, The Art of Computer Programming 3, algorithm 5.2.2M).

    Stages of disjoint comparators `(low, high)`; after all stages the smallest of `size` values is at 0.
    """
    stages = []
    top = 1 << max((size - 1).bit_length() - 1, 0)
    stride = top if size > 1 else 0
    while stride:
        reach, residue, distance = top, 0, stride
        while True:
            stages.append(tuple((i, i + distance) for i in range(size - distance) if i & stride == residue))
            if reach == stride:
                break
            distance, reach, residue = reach - stride, reach // 2, stride
        stride //= 2
    return tuple(stages)


def ranked_sum(
    rows: Float[Array, "K P"], present: Bool[Array, " K"], rank_weights: Float[Array, " K"]
) -> Float[Array, " P"]:
    """`sum_r rank_weights[r] * (the r-th smallest of the present)`, column by column, r from 0.

    Ranks from the number present upwards hold no value and must have weight 0.
    """
    # the largest number, not infinity: times a weight of 0 it is 0
    last = jnp.finfo(rows.dtype).max
    agents = rows.shape[0]
    if agents > _UNROLLED:
        ordered = _sort_in_loop(jnp.where(present[:, None], rows, last))
        return product(rank_weights, ordered)
    ordered = [jnp.where(present[k], rows[k], last) for k in range(agents)]
    for stage in network(agents):
        for low, high in stage:
            # one comparison serves both; minimum and maximum would each look for NaN, at twice the time
            swap = ordered[high] < ordered[low]
            ordered[low], ordered[high] = (
                jnp.where(swap, ordered[high], ordered[low]),
                jnp.where(swap, ordered[low], ordered[high]),
            )
    # one chain of element-wise operations from rows to sum, which compiles to a single pass over memory
    return sum((rank_weights[k] * ordered[k] for k in range(1, agents)), rank_weights[0] * ordered[0])


def _sort_in_loop(rows: Float[Array, "K P"]) -> Float[Array, "K P"]:
    stages = network(rows.shape[0])
    partner = np.tile(np.arange(rows.shape[0]), (len(stages), 1))
    is_high = np.zeros(partner.shape, bool)
    for number, stage in enumerate(stages):
        low, high = np.array(stage).T
        partner[number, low], partner[number, high] = high, low
        is_high[number, high] = True

    def compare(
        rows: Float[Array, "K P"], stage: tuple[Array, Bool[Array, " K"]]
    ) -> tuple[Float[Array, "K P"], None]:
        other = rows[stage[0]]
        return jnp.where(stage[1][:, None], jnp.maximum(rows, other), jnp.minimum(rows, other)), None

    return jax.lax.scan(compare, rows, (jnp.asarray(partner), jnp.asarray(is_high)))[0]
