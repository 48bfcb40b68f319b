"""What the LunarLander benchmark counts, against a plain count; and that its log goes on where it was cut."""

import numpy as np
import pytest

from dynamic_graph_fed_rl import benchmark

CLIENTS, DECISIONS = 2, 1200


@pytest.fixture
def runs(monkeypatch):
    monkeypatch.syspath_prepend(str(benchmark.folder()))
    import lander_runs

    return lander_runs


def test_the_first_good_hundred_of_each_client_is_what_a_plain_count_finds(runs) -> None:
    """Client 0 gets better slowly, client 1 never does."""
    rng = np.random.default_rng(0)
    ended = rng.random((DECISIONS, CLIENTS)) < 0.25
    reward = rng.normal(size=(DECISIONS, CLIENTS)) * 20
    reward[:, 0] += np.linspace(0, 100, DECISIONS)
    rows = {"episode_return": reward, "shaped_return": reward - 5}
    scores = runs.Scores(CLIENTS)
    for part in np.split(np.arange(DECISIONS), 6):
        scores.add({name: values[part] for name, values in rows.items()}, ended[part])
    figures = scores.figures()
    for criterion, metric in runs.CRITERIA.items():
        ends = np.flatnonzero(ended[:, 0])
        sums = np.diff(np.concatenate([[0], np.cumsum(rows[metric][:, 0])[ends]]))
        expected = next(i for i in range(100, len(sums) + 1) if sums[i - 100 : i].mean() >= 200)
        assert 100 < expected < len(sums)
        assert figures["episodes"][criterion] == [expected, None]
        assert figures["steps"][criterion] == [ends[expected - 1] + 1, None]
    assert figures["episodes_in_all"] == ended.sum(0).tolist()
    assert not scores.done()
    row = figures | {"clients": CLIENTS, "client_steps": DECISIONS}
    values, missing = runs.per_client(row, "steps", "plain")
    assert (values[1], missing) == (DECISIONS, 1)


def test_the_curve_is_the_mean_over_clients_of_the_last_hundred(runs) -> None:
    scores = runs.Scores(CLIENTS)
    # an episode a decision
    reward = np.stack([np.arange(300.0), np.zeros(300)], axis=1)
    scores.add({"episode_return": reward, "shaped_return": reward}, np.ones((300, CLIENTS), bool))
    expected = [np.arange(max(0, n - 100), n).mean() / 2 for n in range(50, 301, 50)]
    np.testing.assert_allclose(scores.curve(50), expected)


def test_a_torn_line_of_the_log_is_run_again(runs, tmp_path) -> None:
    log = runs.log_of(tmp_path / "log.jsonl")
    row = {"variant": "shared-5", "seed": 0, "figure": 1}
    log.append(row)
    log.path.write_bytes(log.path.read_bytes() + b'{"variant": "shared-5", "se')
    assert log.rows() == {("shared-5", 0): row}
    assert log.get({"variant": "shared-5", "seed": 0}, lambda: {"figure": 2}) == row
    log.get({"variant": "shared-5", "seed": 1}, lambda: {"figure": 3})
    assert [found["figure"] for found in log.rows().values()] == [1, 3]
    assert runs.log_of(tmp_path / "none.jsonl").rows() == {}
