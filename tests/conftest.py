"""What every test process needs before jax is imported.

Compiled programs are kept on disk, shared by all workers and later runs, since most of the suite's time is
compilation. Every worker keeps to one thread. Shapes are checked over the whole package.
"""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynamic-graph-fed-rl" / "tests"
_DEFAULTS = {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(_CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("dynamic_graph_fed_rl", "beartype.beartype")

# the first example of a property compiles; the same examples in every run keep a failure repeatable
settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("suite")


@pytest.fixture(scope="module", autouse=True)
def release_programs():
    """Every compiled program maps memory of its own, and a process may only have so many maps (65,530 on Linux): a
    worker that kept all of the suite's programs would crash near its end."""
    yield
    jax.clear_caches()
    gc.collect()


def pytest_configure(config: pytest.Config) -> None:
    # two workers may race for one entry of the compilation cache; the loser compiles for itself
    config.addinivalue_line("filterwarnings", "ignore:Error (reading|writing) persistent compilation cache")
