"""QAvg on random MDPs once more, as plain loops over NumPy: what `random_mdp.py` is compared with.

Written from the definitions and sharing nothing with it, the drawing of the MDPs included. Arrays have the
order of a textbook: `transitions[s, a, t]`, `reward[s, a]`, `q[s, a]`.
"""

from collections.abc import Iterator

import numpy as np

DISCOUNT = 0.9
ITERATIONS = 128


def curves(total: int, count: int, periods: tuple[int | None, ...]) -> np.ndarray:
    """`[count, period, train or test, iteration]`: objective of the merged policy of the first `count` MDPs."""
    found = np.zeros((count, len(periods), 2, ITERATIONS))
    for row, (reward, first_q, tables) in zip(range(count), _mdps(total), strict=False):
        for column, period in enumerate(periods):
            found[row, column] = _federated(reward, first_q, tables[:5], tables[5:], period)
    return found - 0.5 / (1 - DISCOUNT)


def _mdps(total: int) -> Iterator[tuple[np.ndarray, np.ndarray, list[np.ndarray]]]:
    random = np.random.RandomState(101)
    seeds = random.randint(0, 1_000_000, size=total)
    for seed in seeds:
        reward, first_q = random.uniform(size=(5, 5)), random.uniform(size=(5, 5))
        random.seed(seed)
        tables = []
        for _ in range(25):
            kept = random.binomial(1, 0.2, size=(25, 5))
            for row in kept:
                if not row.any():
                    row[random.randint(5)] = 1
            weights = kept * random.uniform(size=(25, 5))
            tables.append((weights / weights.sum(axis=1)[:, None]).reshape(5, 5, 5))
        yield reward, first_q, tables


def _federated(
    reward: np.ndarray, first_q: np.ndarray, train: list[np.ndarray], test: list[np.ndarray], period: int | None
) -> np.ndarray:
    """Objectives on training and test environments at every iteration, merging each `period` (None: never)."""
    steps = period or 1
    locals_q = [first_q for _ in train]
    rate = 0.01
    trains: list[float] = []
    tests: list[float] = []
    for _ in range(ITERATIONS // steps):
        if len(trains) > 2 and trains[-1] - trains[-2] < 1e-3 * trains[-2]:
            rate *= 0.5
        merged = np.mean(locals_q, axis=0)
        policy = [int(np.argmax(merged[state])) for state in range(5)]
        trains.append(float(np.mean([_value(policy, reward, table) for table in train])))
        tests.append(float(np.mean([_value(policy, reward, table) for table in test])))
        for agent, table in enumerate(train):
            value = (merged if period else locals_q[agent]).max(axis=1)
            for _ in range(steps):
                value = (1 - rate) * value + rate * (reward + DISCOUNT * table @ value).max(axis=1)
            locals_q[agent] = reward + DISCOUNT * table @ value
    return np.repeat([trains, tests], steps, axis=1)


def _value(policy: list[int], reward: np.ndarray, table: np.ndarray) -> float:
    """Mean over states of the value of a deterministic policy, from its linear equations."""
    states = range(5)
    move = np.array([table[state, policy[state]] for state in states])
    gain = np.array([reward[state, policy[state]] for state in states])
    return float(np.linalg.solve(np.eye(5) - DISCOUNT * move, gain).mean())
