"""Economic dispatch of one world: who generates how much, and what the last megawatt costs.

Three pure functions over the generators of one network, written for one world and mapped over many:
`redistribute` moves set-points to an exact total, `merit_order` finds the cheapest dispatch that ignores
the network, `dc_opf` the cheapest one that pays for every megawatt above a line's rating.

Power is in MW, prices in $/MWh, and generator i costs `cost_c2[i] p^2 + cost_c1[i] p` $/h.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float

PRICE_BISECTIONS = 40
INTERIOR_POINT_ITERATIONS = 12
# Where the interior point stops, as a share of (dearest marginal price x mean range); the least that rounding
# lets it reach.
SMALLEST_PRODUCT = {"float32": 1e-8, "float64": 1e-13}


def redistribute(
    p_mw: Float[Array, " generators"],
    lower_mw: Float[Array, " generators"],
    upper_mw: Float[Array, " generators"],
    target_total_mw: Float[Array, ""],
) -> Float[Array, " generators"]:
    """Set-points inside their limits whose sum is `target_total_mw`.

    What is missing is shared in proportion to the headroom upwards, what is too much in proportion to the
    headroom downwards. A total that cannot be reached gives the nearest limits (all lower or all upper).
    In float32 the sum is right to 1e-3 MW up to a million MW.
    """
    p_mw = jnp.clip(p_mw, lower_mw, upper_mw)
    # The second pass removes the rounding of the first.
    for _ in range(2):
        missing_mw = _missing(p_mw, target_total_mw)
        headroom_mw = jnp.where(missing_mw > 0, upper_mw - p_mw, p_mw - lower_mw)
        total_headroom_mw = jnp.sum(headroom_mw)
        share = jnp.clip(missing_mw / jnp.where(total_headroom_mw > 0, total_headroom_mw, 1.0), -1.0, 1.0)
        p_mw = jnp.clip(p_mw + share * headroom_mw, lower_mw, upper_mw)
    return p_mw


def merit_order(
    demand_mw: Float[Array, ""],
    lower_mw: Float[Array, " generators"],
    upper_mw: Float[Array, " generators"],
    cost_c2: Float[Array, " generators"],
    cost_c1: Float[Array, " generators"],
) -> tuple[Float[Array, " generators"], Float[Array, ""]]:
    """Least-cost dispatch without a network, and its price in $/MWh.

    Bisection on the price (equal incremental cost; Wood, Wollenberg and Sheble, Power Generation, Operation
    and Control, 3rd ed., section 3.1). Generators with `cost_c2` 0 are steps of the supply curve; those that
    share the marginal step are loaded pro rata. Demand beyond the limits gives the limits.
    """
    marginal_at_lower = 2 * cost_c2 * lower_mw + cost_c1
    marginal_at_upper = 2 * cost_c2 * upper_mw + cost_c1
    cheapest, dearest = jnp.min(marginal_at_lower), jnp.max(marginal_at_upper)
    sloped = cost_c2 > 0

    def supply(price: Float[Array, ""]) -> Float[Array, " generators"]:
        on_slope = (price - cost_c1) / jnp.where(sloped, 2 * cost_c2, 1.0)
        step = jnp.where(price > cost_c1, upper_mw, lower_mw)
        return jnp.clip(jnp.where(sloped, on_slope, step), lower_mw, upper_mw)

    def halve(_, bracket: tuple[Float[Array, ""], Float[Array, ""]]):
        below, above = bracket
        middle = 0.5 * (below + above)
        enough = _missing(supply(middle), demand_mw) <= 0
        return jnp.where(enough, below, middle), jnp.where(enough, middle, above)

    # A step at the dearest price is climbed only by a price above it.
    margin = 1e-3 * (1.0 + jnp.abs(dearest))
    below, above = lax.fori_loop(0, PRICE_BISECTIONS, halve, (cheapest - margin, dearest + margin))
    # Between two neighbouring prices supply may still jump by whole steps: load the jump pro rata.
    supply_below, jump_mw = supply(below), supply(above) - supply(below)
    total_jump_mw = jnp.sum(jump_mw)
    fraction = _missing(supply_below, demand_mw) / jnp.where(total_jump_mw > 0, total_jump_mw, 1.0)
    p_mw = redistribute(supply_below + jnp.clip(fraction, 0.0, 1.0) * jump_mw, lower_mw, upper_mw, demand_mw)
    return p_mw, jnp.clip(0.5 * (below + above), cheapest, dearest)


def dc_opf(
    demand_mw: Float[Array, ""],
    lower_mw: Float[Array, " generators"],
    upper_mw: Float[Array, " generators"],
    cost_c2: Float[Array, " generators"],
    cost_c1: Float[Array, " generators"],
    sensitivities: Float[Array, "lines generators"],
    base_flow_mw: Float[Array, " lines"],
    limit_mw: Float[Array, " lines"],
    overload_price: Float[Array, ""] | float,
    iterations: int = INTERIOR_POINT_ITERATIONS,
) -> tuple[Float[Array, " generators"], Float[Array, ""], Float[Array, " lines"]]:
    """Least-cost dispatch under DC power flow, where a megawatt above a line's limit costs `overload_price`.

        min  sum(c2 p^2 + c1 p) + overload_price sum(over)
        s.t. sum(p) = demand, lower <= p <= upper, |sensitivities p + base_flow| <= limit + over, over >= 0

    Args: `sensitivities` are the PTDF columns of the generators' buses; `base_flow_mw` the flow that the
    loads alone cause, -PTDF d; `limit_mw` may be infinite; `overload_price` is positive.

    Returns the dispatch, whose sum is the demand (clipped to what the ranges allow); `price`, the cost of one
    more MW at the PTDF's reference bus; and `congestion_price`, positive where a line is full in its own
    direction, negative where it is full in the other, never beyond +-`overload_price`. The price at
    generator i is `price - sensitivities[:, i] @ congestion_price`. Where the optimum has many prices (demand
    at the sum of the lower or upper limits, steps of the supply curve) they are one choice of them.

    Method: Mehrotra's predictor-corrector interior point (SIAM J. Optim. 2(4), 1992) from an exactly centred
    start. The elastic limits and the bounds on their multipliers are eliminated, so every iteration factors
    one generators x generators matrix; a world that has converged stands still. On 768 random 118-bus
    instances with up to three outages, the default 12 iterations in float32 left a cost at most 0.01 % above
    the optimum (20 in float64: 1e-10 of it). Over-relaxed ADMM with the same scaling left more than 10 % in
    one instance of a hundred after 400 iterations, so it is not used.
    """
    problem = _scale(
        demand_mw, lower_mw, upper_mw, cost_c2, cost_c1, sensitivities, base_flow_mw, limit_mw, overload_price
    )
    point = lax.fori_loop(0, iterations, lambda _, point: _advance(problem, point), _centred_start(problem))
    share = jnp.clip(point.share, 0.0, 1.0)
    p_mw = redistribute(lower_mw + problem.width_mw * share, lower_mw, upper_mw, demand_mw)
    generators = lower_mw.shape[0]
    congestion_price = (point.multiplier[0] - point.multiplier[1])[generators:]
    return p_mw, point.price, jnp.where(jnp.isfinite(limit_mw), congestion_price, 0.0)


def _missing(p_mw: Float[Array, " generators"], total_mw: Float[Array, ""]) -> Float[Array, ""]:
    """`total_mw - sum(p_mw)` without the rounding of a long float32 sum: sixteenths add up exactly."""
    coarse_mw = jnp.round(16 * p_mw) / 16
    return (total_mw - jnp.sum(coarse_mw)) - jnp.sum(p_mw - coarse_mw)


class _Problem(NamedTuple):
    """min 1/2 x'diag(curvature)x + slope'x + cap'over  s.t. width'x = need, |rows x + offset| <= reach+over

    x is the share of its range [0, 1] that a generator uses, which makes every range equally wide and a
    fixed generator a column of zeros. The ranges themselves are the first rows, with a cap so high that
    nobody pays it; the lines are the others.
    """

    width_mw: Float[Array, " generators"]
    curvature: Float[Array, " generators"]
    slope: Float[Array, " generators"]
    need_mw: Float[Array, ""]
    rows: Float[Array, "rows generators"]
    offset: Float[Array, " rows"]
    reach: Float[Array, " rows"]
    cap: Float[Array, " rows"]
    start: Float[Array, ""]
    barrier: Float[Array, ""]
    goal: Float[Array, ""]


class _Point(NamedTuple):
    """A primal-dual iterate; leading axis 2 is the upper and the lower side of a row."""

    share: Float[Array, " generators"]
    price: Float[Array, ""]
    multiplier: Float[Array, "2 rows"]
    spare_multiplier: Float[Array, "2 rows"]
    room: Float[Array, "2 rows"]
    over: Float[Array, "2 rows"]


def _scale(
    demand_mw, lower_mw, upper_mw, cost_c2, cost_c1, sensitivities, base_flow_mw, limit_mw, overload_price
) -> _Problem:
    width_mw = upper_mw - lower_mw
    limited = jnp.isfinite(limit_mw)
    half = jnp.full_like(width_mw, 0.5)
    dearest = jnp.max(jnp.abs(2 * cost_c2 * upper_mw + cost_c1))
    demand_mw = jnp.clip(demand_mw, jnp.sum(lower_mw), jnp.sum(upper_mw))
    box_cap = 10.0 * (overload_price + dearest) * (1.0 + jnp.max(width_mw))
    cost_scale = jnp.maximum(dearest, 1.0) * jnp.maximum(jnp.mean(width_mw), 1.0)
    total_width_mw = jnp.sum(width_mw)
    fraction = _missing(lower_mw, demand_mw) / jnp.where(total_width_mw > 0, total_width_mw, 1.0)
    start = jnp.clip(fraction, 0.05, 0.95)
    line_rows = jnp.where(limited[:, None], sensitivities * width_mw, 0.0)
    line_offset = jnp.where(limited, base_flow_mw + sensitivities @ lower_mw, 0.0)
    reach_mw = jnp.where(limited, limit_mw, 1.0)
    worst_over_mw = jnp.max(jnp.abs(start * jnp.sum(line_rows, axis=1) + line_offset) - reach_mw, initial=0.0)
    return _Problem(
        width_mw=width_mw,
        curvature=2 * cost_c2 * width_mw**2,
        slope=(2 * cost_c2 * lower_mw + cost_c1) * width_mw,
        need_mw=_missing(lower_mw, demand_mw),
        rows=jnp.concatenate([jnp.eye(width_mw.shape[0], dtype=line_rows.dtype), line_rows]),
        offset=jnp.concatenate([-half, line_offset]),
        reach=jnp.concatenate([half, reach_mw]),
        cap=jnp.concatenate(
            [jnp.broadcast_to(box_cap, width_mw.shape), jnp.broadcast_to(overload_price, limit_mw.shape)]
        ),
        start=start,
        # Overloads at the start need a barrier of their size, or their multipliers begin at the cap and the
        # first steps are tiny: 0.2 was the best of 0 to 1 on 768 random instances with up to 3 outages.
        barrier=jnp.maximum(cost_scale, 0.2 * overload_price * worst_over_mw),
        goal=SMALLEST_PRODUCT[width_mw.dtype.name] * cost_scale,
    )


def _outwards(rows: Float[Array, " rows"]) -> Float[Array, "2 rows"]:
    """A row seen from its upper and from its lower side."""
    return jnp.array([[1.0], [-1.0]], rows.dtype) * rows


def _centred_start(problem: _Problem) -> _Point:
    """Primal feasible in the rows, with every complementarity product equal to `barrier`.

    Of a side with room r = reach - flow, the multiplier v solves barrier / v - barrier / (cap - v) = r.
    """
    share = jnp.broadcast_to(problem.start, problem.width_mw.shape)
    room = problem.reach - _outwards(problem.rows @ share + problem.offset)

    def root(signed_room: Float[Array, "2 rows"]) -> Float[Array, "2 rows"]:
        linear = signed_room * problem.cap + 2 * problem.barrier
        discriminant = jnp.hypot(signed_room * problem.cap, 2 * problem.barrier)
        # Two forms of the same root; each is free of cancellation on its side of linear = 0.
        return jnp.where(
            linear >= 0,
            2 * problem.barrier * problem.cap / (jnp.maximum(linear, 0.0) + discriminant),
            (linear - discriminant) / (2 * jnp.where(linear < 0, signed_room, 1.0)),
        )

    multiplier, spare_multiplier = root(room), root(-room)
    return _Point(
        share=share,
        price=jnp.zeros_like(problem.need_mw),
        multiplier=multiplier,
        spare_multiplier=spare_multiplier,
        room=problem.barrier / multiplier,
        over=problem.barrier / spare_multiplier,
    )


def _advance(problem: _Problem, point: _Point) -> _Point:
    """One predictor-corrector step; a point that has converged, or would stop being finite, is returned."""
    width_mw, rows = problem.width_mw, problem.rows
    epsilon = jnp.finfo(width_mw.dtype).eps

    net = point.multiplier[0] - point.multiplier[1]
    gradient = problem.curvature * point.share + problem.slope - width_mw * point.price
    gradient = gradient + rows.T @ net
    imbalance_mw = width_mw @ point.share - problem.need_mw
    row_error = problem.reach - _outwards(rows @ point.share + problem.offset)
    row_error = row_error + point.over - point.room

    # Eliminating room, over and both multipliers leaves stiffness per side of a row.
    stiffness = 1.0 / (point.room / point.multiplier + point.over / point.spare_multiplier)
    matrix = (rows.T * (stiffness[0] + stiffness[1])) @ rows + jnp.diag(problem.curvature)
    scale = lax.rsqrt(jnp.diagonal(matrix))
    # A unit diagonal and a lift of a few rounding errors keep the float32 factorisation positive definite.
    lift = 8 * epsilon * jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    factor = jnp.linalg.cholesky(scale[:, None] * matrix * scale + lift)

    def solve(right: Float[Array, "generators columns"]) -> Float[Array, "generators columns"]:
        return scale[:, None] * cho_solve((factor, True), scale[:, None] * right)

    def push(room_target: Float[Array, "2 rows"], over_target: Float[Array, "2 rows"]):
        """The multipliers' step at a standstill of the shares, and the force it leaves on them."""
        pushed = room_target / point.multiplier - over_target / point.spare_multiplier - row_error
        pushed = stiffness * pushed
        return pushed, -gradient - rows.T @ (pushed[0] - pushed[1])

    def complete(free, pushed, room_target, over_target) -> _Point:
        response_mw = width_mw @ per_price
        # Where no unit has a range, no price moves the total.
        d_price = -(imbalance_mw + width_mw @ free) / jnp.where(response_mw > 0, response_mw, jnp.inf)
        d_share = free + d_price * per_price
        d_multiplier = pushed + stiffness * _outwards(rows @ d_share)
        return _Point(
            share=d_share,
            price=d_price,
            multiplier=d_multiplier,
            spare_multiplier=-d_multiplier,
            room=(room_target - point.room * d_multiplier) / point.multiplier,
            over=(over_target + point.over * d_multiplier) / point.spare_multiplier,
        )

    room_product = point.multiplier * point.room
    over_product = point.spare_multiplier * point.over
    mean_product = 0.5 * (jnp.mean(room_product) + jnp.mean(over_product))

    pushed, force = push(-room_product, -over_product)
    solution = solve(jnp.stack([force, width_mw], axis=1))
    per_price = solution[:, 1]
    predictor = complete(solution[:, 0], pushed, -room_product, -over_product)
    length = _longest(point, predictor)
    reached = 0.5 * (
        jnp.mean((point.multiplier + length * predictor.multiplier) * (point.room + length * predictor.room))
        + jnp.mean(
            (point.spare_multiplier + length * predictor.spare_multiplier) * (point.over + length * predictor.over)
        )
    )

    centre = jnp.maximum(mean_product * (reached / mean_product) ** 3, problem.goal)
    room_target = centre - room_product - predictor.multiplier * predictor.room
    over_target = centre - over_product - predictor.spare_multiplier * predictor.over
    pushed, force = push(room_target, over_target)
    step = complete(solve(force[:, None])[:, 0], pushed, room_target, over_target)
    length = 0.99 * _longest(point, step)
    moved = _Point(*(value + length * change for value, change in zip(point, step, strict=True)))
    # A sum carries what is not a number to the test; XLA's batched maxima on CPU drop it.
    finite = jnp.isfinite(sum(jnp.sum(value) for value in moved))
    accept = finite & (mean_product > 2 * problem.goal)
    return _Point(*(jnp.where(accept, new, old) for new, old in zip(moved, point, strict=True)))


def _longest(point: _Point, step: _Point) -> Float[Array, ""]:
    """The largest step length up to 1 that leaves every multiplier and slack non-negative."""
    shrinkage = [jnp.max(-change / value) for value, change in zip(point[2:], step[2:], strict=True)]
    return 1.0 / jnp.maximum(1.0, jnp.max(jnp.stack(shrinkage)))
