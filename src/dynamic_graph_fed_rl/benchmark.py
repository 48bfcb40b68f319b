"""Finds the benchmarks of the checkout, which are no part of the installed package, lists and runs them."""

import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

SCRIPTS = {
    "power-env-speed": "world steps per CPU second on a 118-bus grid, beside grid2op",
    "traffic-env-speed": "decisions per CPU second on the signals of cologne8, beside sumo-rl on libsumo",
    "training-speed": "the default training, beside Stable-Baselines3 on grid2op",
    "classic": "learning curves of value and actor-critic methods on CartPole and Pendulum",
    "lander": "episodes and steps that federated LunarLander clients need, by mode; speed beside Stable-Baselines3",
    "replay": "adding to and sampling from replay, beside flashbax and a list of transitions",
    "memory": "what each memory is worth where nothing can be done without one",
    "off-policy-grid": "scores of SAC and TD3 on the power grid against world steps, beside PPO",
    "stacked-agents": "gradient steps a second of 20 SAC agents in one program, beside 20 single runs",
    "http-exchange": "an exchange over HTTP, beside pickles inside JSON; many clients at once",
    "traffic": "policies for traffic signals in SUMO beside the rules in use: transfer, districts, unseen cities",
    "augmentation": "PPO with and without augmented observations where sensors fail",
}
"""Benchmarks that are a script of the same name (`power_env_speed.py`): what each shows."""

FEDERATION = "federation"
_FEDERATION_HELP = "published results and figures of the federation, all parts or those that are named:"


def folder() -> Path:
    """The checkout's `benchmarks/`.

    Raises:
        FileNotFoundError: the package was installed without its checkout.
    """
    found = Path(__file__).resolve().parents[2] / "benchmarks"
    if not (found / FEDERATION / "__init__.py").is_file():
        raise FileNotFoundError(
            f"benchmark: no benchmarks at {found}: they come with the source, not with the installed package; "
            "get the repository and run `pip install -e .` in it"
        )
    return found


def listing() -> str:
    """Every benchmark in a line, the parts of the federation's with their bars."""
    lines = [f"{name:18}{text}" for name, text in SCRIPTS.items()]
    lines.append(f"{FEDERATION:18}{_FEDERATION_HELP}")
    lines += [f"  {name:16}{part.help}; bar: {part.bar}" for name, part in _federation().PARTS.items()]
    return "\n".join(lines)


def run_script(name: str, words: Sequence[str]) -> int:
    """Run a script in a process of its own, since it pins its threads before jax is imported."""
    script = folder() / f"{name.replace('-', '_')}.py"
    return subprocess.run([sys.executable, str(script), *words], check=False).returncode


def run_federation(parts: Sequence[str], quick: bool, seeds: int | None) -> int:
    """Run parts of the federation's benchmark (none named: all); returns 0 whatever passes.

    Raises:
        ValueError: an unknown part, or fewer than one seed.
    """
    return _federation().run_parts(parts, quick, seeds)


def _federation() -> Any:
    path = str(folder())
    if path not in sys.path:
        # the folder holds modules that import each other by bare names, as its scripts do
        sys.path.insert(0, path)
    return import_module(FEDERATION)
