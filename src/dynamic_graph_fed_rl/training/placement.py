"""The agents spread over several devices, of one process or of several.

Nothing else in the package knows of it: arrays that lie on several devices make the compiler split the very same
round. An agent is known by its place in the mesh, never by a device's number, which need not count from 0.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dynamic_graph_fed_rl.training.site import InTurn
from dynamic_graph_fed_rl.training.trainer import Group, Trainer, Training

AXIS = "agents"

Tree = TypeVar("Tree")


def join_processes(coordinator: str, processes: int, process: int) -> None:
    """Make this process number `process` of those that train together; nothing may have used jax before.

    `coordinator` is the `host:port` at which process 0 can be reached. If one dies, all end.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, processes, process)


def agent_mesh(devices: int) -> Mesh:
    """A line of devices for the agents, equally many of every process.

    Raises:
        ValueError: there are not so many, or the processes cannot give equally many.
    """
    there, processes = jax.devices(), jax.process_count()
    if devices > len(there):
        count = "there is 1" if len(there) == 1 else f"there are {len(there)}"
        flag = f"XLA_FLAGS=--xla_force_host_platform_device_count={devices // processes}"
        raise ValueError(
            f"devices {devices}: {count}" + (f"; {flag} divides a CPU" if there[0].platform == "cpu" else "")
        )
    if devices < 1 or devices % processes:
        raise ValueError(f"devices {devices}: must be a multiple of {processes}, the number of processes")
    each = devices // processes
    owned = [[one for one in there if one.process_index == process] for process in range(processes)]
    for process, mine in enumerate(owned):
        if len(mine) < each:
            raise ValueError(f"devices {devices}: needs {each} of process {process}, which has {len(mine)}")
    return Mesh(np.array([one for mine in owned for one in mine[:each]]), (AXIS,))


class Spread(eqx.Module):
    """A trainer whose agents lie on the devices of a mesh; stands in for it wherever rounds are run.

    Its rounds are the trainer's own, up to the rounding of sums that are split otherwise.
    """

    trainer: Trainer
    mesh: Mesh = eqx.field(static=True)

    @eqx.filter_jit(donate="all-except-first")
    def run_round(self, training: Training) -> tuple[Training, dict[str, Any]]:
        """`Trainer.run_round`; the state stays spread, and the metrics are known to every device."""
        after, metrics = self.trainer.run_round(training)
        known = jax.lax.with_sharding_constraint(metrics, NamedSharding(self.mesh, PartitionSpec()))
        return _placed(after, self.trainer, self.mesh, jax.lax.with_sharding_constraint), known

    def place(self, training: Training) -> Training:
        """A whole state spread over the devices; every process hands in the same values."""
        return _placed(training, self.trainer, self.mesh, _lay)

    def whole(self, training: Training) -> Training:
        """The state on one device of this process; where there are several processes, all must ask for it."""
        if jax.process_count() == 1:
            return jax.tree.map(lambda leaf: jax.device_put(leaf, self.mesh.devices[0]).copy(), training)
        together = jax.jit(lambda tree: tree, out_shardings=NamedSharding(self.mesh, PartitionSpec()))(training)
        return jax.tree.map(_here, together)


Runner: TypeAlias = Trainer | Spread | InTurn
"""All of them have `run_round`."""


def leads() -> bool:
    """Whether this process writes and prints for all."""
    return jax.process_index() == 0


def runner_of(trainer: Trainer, agent_map: str, devices: int) -> Runner:
    """What runs the rounds: the trainer itself; its agents one after the other, where `agent_map` is loop; or its
    agents spread, over more than one device or process.

    Raises:
        ValueError: there are not so many devices, or agents or processes do not divide among them.
    """
    if agent_map == "loop":
        return InTurn(trainer)
    if devices == jax.process_count() == 1:
        return trainer
    return spread(trainer, agent_mesh(devices))


def begin(trainer: Runner, training: Training) -> Training:
    """Process 0's state, where rounds of this trainer want it."""
    return trainer.place(the_same_everywhere(training)) if isinstance(trainer, Spread) else training


def whole(trainer: Runner, training: Training) -> Training:
    """The state on one device, wherever its agents were; every process must ask for it."""
    return trainer.whole(training) if isinstance(trainer, Spread) else training


def end(trainer: Runner, training: Training) -> Training:
    """The whole state; from here on each process is alone."""
    training = whole(trainer, training)
    if jax.process_count() > 1:
        jax.block_until_ready(training)
        jax.distributed.shutdown()
    return training


def spread(trainer: Trainer, mesh: Mesh) -> Spread:
    """The trainer's agents in equal parts over the devices of a mesh.

    Raises:
        ValueError: they cannot be divided so.
    """
    for group in trainer.groups:
        if group.worlds.agents % mesh.size:
            raise ValueError(f"agents {group.worlds.agents}: must be a multiple of the {mesh.size} devices")
    return Spread(_placed(trainer, trainer, mesh, _lay), mesh)


def the_same_everywhere(tree: Tree) -> Tree:
    """Process 0's values in every process."""
    if jax.process_count() == 1:
        return tree
    received = multihost_utils.broadcast_one_to_all(jax.tree.map(_numbers, tree))
    return jax.tree.map(_like, received, tree)


def any_process(asked: bool) -> bool:
    """Whether it is so in any process."""
    return asked if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(asked)).any())


def _placed(tree: Tree, trainer: Trainer, mesh: Mesh, put: Callable[[Any, NamedSharding], Any]) -> Tree:
    """`put` every array of a `Training` or a `Trainer` where it belongs."""

    def place(path: tuple, leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        axes = PartitionSpec(AXIS) if _has_rows(path, leaf, trainer) else PartitionSpec()
        return put(leaf, NamedSharding(mesh, axes))

    return jax.tree_util.tree_map_with_path(place, tree)


def _has_rows(path: tuple, leaf: Any, trainer: Trainer) -> bool:
    """Whether the leaf at this path of a `Training` or a `Trainer` has a row for each agent."""
    part = path[0].name
    if leaf.size == 0 or part in ("key", "round", "server", "pool"):
        # the compiler leaves empty arrays whole; what belongs to no agent is everywhere
        return False
    if part == "learners":
        return True
    if part == "federation":
        # a level of a tree with a node for each agent is no exception: its nodes lie with them
        return leaf.ndim > 0 and leaf.shape[0] == trainer.agents
    group: Group = trainer.groups[path[1].idx]
    names = [one.name for one in path[2:] if isinstance(one, jax.tree_util.GetAttrKey)]
    owned = group.worlds.owners is not None
    if part == "actors":
        return owned or names[0] != "worlds"
    return owned and names[:2] == ["worlds", "environment"]


def _is_key(leaf: Any) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _like(numbers: Any, leaf: Any) -> Any:
    numbers = jax.numpy.array(numbers)
    return jax.random.wrap_key_data(numbers) if _is_key(leaf) else numbers


def _lay(leaf: Any, sharding: NamedSharding) -> Any:
    """An array of this process on the devices of all, from the same values in each."""
    if jax.process_count() == 1:
        # a copy: the training loop gives its buffers away
        return jax.device_put(leaf.copy(), sharding)
    numbers = _numbers(leaf)
    laid = jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])
    return jax.random.wrap_key_data(laid) if _is_key(leaf) else laid


def _here(leaf: Any) -> Any:
    """What this process's first device holds of an array that every device holds whole."""
    data = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return _like(data.addressable_data(0), leaf)
