"""A checkpoint is exact, whole or refused, and replaced at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from dynamic_graph_fed_rl.training import checkpoint


def tree(scale: float = 1.0) -> dict:
    return {
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(3), (2, 3)),
        "weights": [scale * jnp.linspace(-1, 1, 12).reshape(3, 4), jnp.asarray(jnp.nan)],
        "steps": jnp.asarray(41, jnp.int32),
        "mask": jnp.asarray([True, False, True]),
        "bits": jnp.arange(5, dtype=jnp.uint8),
        "nothing": jnp.zeros((2, 0)),
        "static": "kept from the template",
    }


def bits(leaf: jax.Array) -> bytes:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def refuse(text: str) -> None:
    raise AssertionError(f"unexpected warning: {text}")


def test_round_trip_is_exact(tmp_path) -> None:
    before = tree()
    checkpoint.save(tmp_path, before, 120, keep=3)
    assert [path.name for path in tmp_path.iterdir()] == ["round-000120.safetensors"]
    like = jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, str) else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), before
    )
    found = checkpoint.newest(tmp_path, like, refuse)
    assert found is not None
    rounds, after = found
    assert rounds == 120 and after["static"] == before["static"]
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        if not isinstance(old, str):
            assert (old.dtype, old.shape, bits(old)) == (new.dtype, new.shape, bits(new))
    assert jax.random.uniform(after["key"]) == jax.random.uniform(before["key"])


def test_a_torn_file_is_passed_over_wherever_it_was_cut(tmp_path) -> None:
    checkpoint.save(tmp_path, tree(1.0), 10, keep=3)
    path = checkpoint.save(tmp_path, tree(2.0), 20, keep=3)
    whole = path.read_bytes()
    for cut in (0, 4, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        warnings: list[str] = []
        found = checkpoint.newest(tmp_path, tree(), warnings.append)
        assert found is not None and found[0] == 10
        assert bits(found[1]["weights"][0]) == bits(tree(1.0)["weights"][0])
        assert len(warnings) == 1 and path.name in warnings[0]


def test_one_flipped_bit_is_noticed(tmp_path) -> None:
    path = checkpoint.save(tmp_path, tree(), 10, keep=3)
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    warnings: list[str] = []
    assert checkpoint.newest(tmp_path, tree(), warnings.append) is None
    assert "checksum" in warnings[0]


def test_a_foreign_file_is_passed_over(tmp_path) -> None:
    checkpoint.save(tmp_path, tree(), 10, keep=3)
    save_file({"weights": np.ones(3, np.float32)}, tmp_path / "round-000030.safetensors")
    warnings: list[str] = []
    found = checkpoint.newest(tmp_path, tree(), warnings.append)
    assert found is not None and found[0] == 10 and "format" in warnings[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [jnp.zeros((3, 5)), jnp.zeros(())]}, r"'weights/0' is float32\[3, 4\].*float32\[3, 5\]"),
        ({"steps": jnp.asarray(1.0)}, r"'steps' is int32\[\], but this experiment has float32\[\]"),
        ({"more": jnp.zeros(2)}, r"'more' is missing, but this experiment has float32\[2\]"),
        ({"keys": jax.random.key(0)}, r"'keys' is uint32\[2, 3, 2\], but this experiment has uint32\[2\]"),
    ],
)
def test_another_structure_names_the_leaf(tmp_path, change, message) -> None:
    checkpoint.save(tmp_path, tree(), 10, keep=3)
    with pytest.raises(ValueError, match=message):
        checkpoint.newest(tmp_path, tree() | change, refuse)


def test_old_ones_and_leftovers_go(tmp_path) -> None:
    (tmp_path / "round-000001.safetensors.part").write_bytes(b"half")
    for rounds in (5, 10, 15, 1_000_000, 20):
        checkpoint.save(tmp_path, {"x": jnp.zeros(1)}, rounds, keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["round-000020.safetensors", "round-1000000.safetensors"]
