"""A training state in a file: whole or not at all, exact to the last bit.

A checkpoint is a safetensors file. Each array leaf lies under its path in the tree, a random key as its key
data; the metadata hold the format, the round, and a SHA-256 of everything else, so that a torn or foreign
file is told from a whole one.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jaxtyping import PyTree
from safetensors.numpy import save as to_bytes

FORMAT = "dgfrl-checkpoint-1"
_NAME = re.compile(r"round-(\d{6,})\.safetensors")
_UNFINISHED = ".part"


def save(folder: Path, training: PyTree, rounds: int, keep: int) -> Path:
    """Write `round-<rounds>.safetensors`, then delete all but the `keep` newest.

    The file is written under another name, flushed to the disk and renamed: under its own name it is never
    seen half-written, whenever the process or the machine stops.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: _to_numpy(leaf) for name, leaf in _named(training).items()}
    metadata = {"format": FORMAT, "round": str(rounds)}
    content = to_bytes(arrays, metadata | {"sha256": _digest(arrays, metadata)})
    path = folder / f"round-{rounds:06d}.safetensors"
    write_whole(path, content)
    for old in checkpoints(folder)[keep:]:
        old.unlink(missing_ok=True)
    for unfinished in folder.glob(f"*{_UNFINISHED}"):
        unfinished.unlink(missing_ok=True)
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file at once: a reader sees the old content or the new, never a part."""
    unfinished = path.with_name(path.name + _UNFINISHED)
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    if hasattr(os, "O_DIRECTORY"):  # the rename itself is durable only once the folder is
        handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def checkpoints(folder: Path) -> list[Path]:
    """Files named like a checkpoint, newest first."""
    found = {int(match[1]): path for path in folder.glob("*") if (match := _NAME.fullmatch(path.name))}
    return [found[rounds] for rounds in sorted(found, reverse=True)]


def newest(folder: Path, like: PyTree, warn: Callable[[str], None]) -> tuple[int, PyTree] | None:
    """Rounds and training state of the newest whole checkpoint; None if there is none.

    `like` has the structure of the training state (`eqx.filter_eval_shape`). A file that is torn, foreign or
    of another format is passed over with a warning.

    Raises:
        ValueError: the file is whole but of another structure; names the first leaf that differs.
    """
    for path in checkpoints(folder):
        try:
            rounds, arrays = read(path)
        except ValueError as error:
            warn(f"{error}; trying the one before it")
            continue
        return rounds, _restore(path, arrays, like)
    return None


def read(path: Path) -> tuple[int, dict[str, np.ndarray]]:
    """Rounds and arrays by name of a whole checkpoint.

    Raises:
        ValueError: the file is torn, foreign or of another format.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint {path}: cannot be read ({error})") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path}: format {metadata.get('format')}, this version reads {FORMAT}")
    stated = metadata.pop("sha256", None)
    if stated != _digest(arrays, metadata):
        raise ValueError(f"checkpoint {path}: content does not match its checksum")
    return int(metadata["round"]), arrays


def _restore(path: Path, arrays: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
    wanted = _named(like)
    for name in [*wanted, *(name for name in arrays if name not in wanted)]:
        stored, needed = _stored_as(arrays.get(name)), _stored_as(_key_data_of(wanted.get(name)))
        if stored != needed:
            raise ValueError(f"checkpoint {path}: '{name}' is {stored}, but this experiment has {needed}")

    def fill(place: tuple, leaf: Any) -> Any:
        if not _is_array(leaf):
            return leaf
        # a copy: the training loop gives its buffers away
        value = jnp.array(arrays[_name(place)], copy=True)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(value)
        return value

    return jax.tree_util.tree_map_with_path(fill, like)


def _named(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(place): leaf for place, leaf in leaves if _is_array(leaf)}


def _name(place: tuple) -> str:
    return jax.tree_util.keystr(place, simple=True, separator="/")


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def _key_data_of(leaf: Any) -> Any:
    if leaf is None or not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return jax.eval_shape(jax.random.key_data, leaf)


def _to_numpy(leaf: Any) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.ascontiguousarray(np.asarray(leaf)).reshape(leaf.shape)


def _stored_as(array: Any) -> str:
    return "missing" if array is None else f"{array.dtype}{list(array.shape)}"


def _digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    content = hashlib.sha256()
    for key in sorted(metadata):
        content.update(f"{key}={metadata[key]}\n".encode())
    for name in sorted(arrays):
        content.update(f"{name}:{_stored_as(arrays[name])}\n".encode())
        content.update(arrays[name].tobytes())
    return content.hexdigest()
