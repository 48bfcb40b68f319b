"""Another library trains on our environments. It is no dependency of ours: runs where it is installed."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_with_stable_baselines3.py"


@pytest.mark.filterwarnings("default")
def test_stable_baselines3_learns_to_balance() -> None:
    pytest.importorskip("stable_baselines3")
    main = runpy.run_path(str(EXAMPLE))["main"]
    assert main(steps=20_000) > 150  # a random policy gets 20
