"""Splitting a connected network into connected regions of similar size with few lines between them."""

from collections import deque

import numpy as np
from jaxtyping import Int

_STARTS = 20
_SWEEPS = 60


def grow_regions(nodes: int, edges: Int[np.ndarray, "edges 2"], regions: int) -> Int[np.ndarray, "nodes"]:
    """Region of every node of a connected network; every region is connected. Deterministic.

    Seeds spread apart by hop distance grow one node at a time, smallest region first; then border nodes move
    to a neighbouring region while that lowers `ties + 2 * (nodes outside +-10 % of the mean size)` and keeps
    the region they leave connected. The best of a few starts is kept.
    """
    neighbours: list[list[int]] = [[] for _ in range(nodes)]
    for a, b in edges.tolist():
        neighbours[a].append(b)
        neighbours[b].append(a)
    distance = _hop_distances(neighbours)
    best, best_cost = np.zeros(nodes, dtype=np.int64), np.inf
    starts = min(_STARTS, nodes) if regions > 1 else 1
    # Starting from nodes spread over the eccentricity ranking tries central and peripheral first seeds.
    ranking = np.argsort(distance.max(axis=1), kind="stable")
    for first in ranking[np.linspace(0, nodes - 1, starts).astype(int)]:
        region = _grow(neighbours, _spread_seeds(distance, int(first), regions))
        _improve(neighbours, region, regions)
        cost = _cost(edges, np.asarray(region), regions)
        if cost < best_cost:
            best, best_cost = np.asarray(region, dtype=np.int64), cost
    return _renumber(best)


def _hop_distances(neighbours: list[list[int]]) -> np.ndarray:
    nodes = len(neighbours)
    distance = np.full((nodes, nodes), nodes, dtype=np.int64)
    for start in range(nodes):
        row = distance[start]
        row[start] = 0
        queue = deque([start])
        while queue:
            node = queue.popleft()
            for other in neighbours[node]:
                if row[other] == nodes:
                    row[other] = row[node] + 1
                    queue.append(other)
    return distance


def _spread_seeds(distance: np.ndarray, first: int, regions: int) -> list[int]:
    seeds = [first]
    nearest = distance[first].copy()
    while len(seeds) < regions:
        seeds.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, distance[seeds[-1]])
    return seeds


def _grow(neighbours: list[list[int]], seeds: list[int]) -> list[int]:
    region = [-1] * len(neighbours)
    sizes = [1] * len(seeds)
    for k, seed in enumerate(seeds):
        region[seed] = k
    remaining = len(neighbours) - len(seeds)
    stuck: set[int] = set()
    while remaining:
        k = min((k for k in range(len(seeds)) if k not in stuck), key=lambda k: (sizes[k], k))
        frontier = {
            other
            for node in range(len(region))
            if region[node] == k
            for other in neighbours[node]
            if region[other] < 0
        }
        if not frontier:
            stuck.add(k)
            continue
        # The node with most of its neighbours already inside adds the fewest ties.
        chosen = max(frontier, key=lambda n: (sum(region[o] == k for o in neighbours[n]), -len(neighbours[n]), -n))
        region[chosen] = k
        sizes[k] += 1
        remaining -= 1
    return region


def _band(nodes: int, regions: int) -> tuple[int, int]:
    mean = nodes / regions
    return int(np.floor(0.9 * mean)), int(np.ceil(1.1 * mean))


def _cost(edges: np.ndarray, region: np.ndarray, regions: int) -> float:
    low, high = _band(len(region), regions)
    size = np.bincount(region, minlength=regions)
    ties = np.count_nonzero(region[edges[:, 0]] != region[edges[:, 1]])
    return ties + 2.0 * (np.maximum(size - high, 0) + np.maximum(low - size, 0)).sum()


def _improve(neighbours: list[list[int]], region: list[int], regions: int) -> None:
    low, high = _band(len(region), regions)
    sizes = [region.count(k) for k in range(regions)]
    mean = len(region) / regions

    def imbalance(size: int) -> float:
        # The quadratic term only breaks ties: it lets sizes drift together along paths of equal cost.
        return 2.0 * (max(size - high, 0) + max(low - size, 0)) + 0.01 * (size - mean) ** 2 / mean

    for _ in range(_SWEEPS):
        moved = False
        for node in range(len(region)):
            here = region[node]
            if sizes[here] == 1:
                continue
            inside = [region[o] for o in neighbours[node]]
            gains = []
            for there in sorted(set(inside) - {here}):
                ties = inside.count(here) - inside.count(there)
                before = imbalance(sizes[here]) + imbalance(sizes[there])
                after = imbalance(sizes[here] - 1) + imbalance(sizes[there] + 1)
                gains.append((ties + after - before, there))
            if not gains:
                continue
            change, there = min(gains)
            if change < -1e-9 and _connected_without(neighbours, region, node):
                region[node] = there
                sizes[here] -= 1
                sizes[there] += 1
                moved = True
        if not moved:
            return


def _connected_without(neighbours: list[list[int]], region: list[int], node: int) -> bool:
    here = region[node]
    border = {o for o in neighbours[node] if region[o] == here}
    if len(border) <= 1:
        return bool(border)
    start = min(border)
    seen, queue, missing = {start, node}, [start], border - {start}
    while queue and missing:
        for other in neighbours[queue.pop()]:
            if region[other] == here and other not in seen:
                seen.add(other)
                missing.discard(other)
                queue.append(other)
    return not missing


def _renumber(region: np.ndarray) -> np.ndarray:
    """Regions in the order of their lowest node, so that the numbering does not depend on the seeds."""
    _, first = np.unique(region, return_index=True)
    order = np.empty(len(first), dtype=np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[region]
