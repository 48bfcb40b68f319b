"""What algorithms that learn from replay have in common: everything but what is fitted and how actions are drawn.

A round's experience goes into the agent's replay; then a number of gradient steps, each on windows drawn from it.
A window begins where the replay kept the memory, so that what the agent remembered is known at each of its rows.
"""

import abc
from dataclasses import replace
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.base import Algorithm, Experience, pulled_back
from dynamic_graph_fed_rl.algorithms.on_policy import unroll
from dynamic_graph_fed_rl.algorithms.returns import ValueScale, beside_siblings
from dynamic_graph_fed_rl.algorithms.targets import n_step, rows_at
from dynamic_graph_fed_rl.buffers.replay import Replay, Sample
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.environments.worlds import select

Networks = TypeVar("Networks", bound=eqx.Module)


class Learner(eqx.Module, Generic[Networks]):
    """One agent: what it learns, slow copies of it, optimisers, experience, the scale of its values, and the number
    of gradient steps so far."""

    networks: Networks
    targets: PyTree
    optimiser: PyTree
    replay: Replay | None
    """None only while gradient steps go on, which have their samples already."""
    scale: ValueScale
    updates: Int[Array, ""]


class Lesson(NamedTuple):
    """What a round's gradient steps learn from, `[updates, ...]`, and whether there is enough to begin with."""

    windows: Sample
    ready: Bool[Array, ""]


class Batch(NamedTuple):
    """Rows to learn from, `[rows, windows, ...]`; `following` is the observation after the n decisions."""

    memory: PyTree
    observation: Observation
    action: Array
    gain: Float[Array, "rows windows"]
    factor: Float[Array, "rows windows"]
    following_memory: PyTree
    following: Observation
    weight: Float[Array, "rows windows"]
    """Weights of the mean over rows: 0 for those that teach nothing, importance weights where priorities drew."""


class OffPolicy(Algorithm, Generic[Networks]):
    """Hyperparameters as in `OffPolicySettings`; a final class brings networks, exploration and a gradient step."""

    learning_rate: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    discount: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    max_gradient_norm: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    target_rate: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    update_delay: Int[Array, ""] = eqx.field(converter=jnp.asarray)
    warm_up: Int[Array, ""] = eqx.field(converter=jnp.asarray)
    proximal: float = eqx.field(static=True)
    siblings: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    layers: int = eqx.field(static=True)
    encoder: str = eqx.field(static=True)
    memory: str | None = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)
    updates: int = eqx.field(static=True)
    replay: int = eqx.field(static=True)
    window: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    priority: str = eqx.field(static=True)
    value_scale: float = eqx.field(static=True)

    compares: ClassVar[bool] = False
    """Whether gradient steps see siblings together and compare them; else rewards are kept less their mean."""

    @abc.abstractmethod
    def networks(self, key: PRNGKeyArray, spec: Spec) -> Networks:
        """Fresh networks; one of them, under `memory`, is what an agent remembers with."""

    @abc.abstractmethod
    def slow(self, networks: Networks) -> PyTree:
        """The part of the networks that targets are a slow copy of."""

    @abc.abstractmethod
    def explore(self, key: PRNGKeyArray, learner: Learner, memory: PyTree, observation: Observation) -> Array: ...

    @abc.abstractmethod
    def greedy(self, networks: Networks, memory: PyTree, observation: Observation) -> Array: ...

    @abc.abstractmethod
    def step(
        self, key: PRNGKeyArray, learner: Learner, received: Networks, sample: Sample
    ) -> tuple[Networks, PyTree, Float[Array, "rows windows"], dict[str, Float[Array, ""]]]:
        """One gradient step: networks, optimisers, the size of each row's error, figures worth recording.

        `received` is what the round began with; see `descend`.
        """

    @abc.abstractmethod
    def optimisers(self, networks: Networks) -> PyTree:
        """Their states at the start."""

    def fresh(self, key: PRNGKeyArray, spec: Spec) -> Learner:
        """A learner without a replay, for whoever keeps its experience elsewhere."""
        networks: Any = self.networks(key, spec)
        start = self.slow(networks), self.optimisers(networks)
        return Learner(networks, *start, None, ValueScale.initial(self.value_scale or 1.0), jnp.zeros((), jnp.int32))

    def init(self, key: PRNGKeyArray, spec: Spec, worlds: int) -> Learner:
        learner = self.fresh(key, spec)
        memory = self.initial_memory(learner, Observation.blank(spec, worlds))
        replay = Replay.create(spec, self.replay, worlds, self.window, memory, self.priority)
        return eqx.tree_at(lambda one: one.replay, learner, replay, is_leaf=lambda leaf: leaf is None)

    def initial_memory(self, learner: Learner, observation: Observation) -> PyTree:
        return learner.networks.memory.initial(observation)

    def act(
        self, key: PRNGKeyArray | None, learner: Learner, memory: PyTree, observation: Observation
    ) -> tuple[Array, PyTree, None]:
        memory = learner.networks.memory.remember(memory, observation)
        if key is None:
            return self.greedy(learner.networks, memory, observation), memory, None
        return self.explore(key, learner, memory, observation), memory, None

    def shared(self, learner: Learner) -> PyTree:
        return learner.networks

    def with_shared(self, learner: Learner, shared: PyTree) -> Learner:
        return eqx.tree_at(lambda one: one.networks, learner, shared)

    def skip(self, learner: Learner) -> Learner:
        return eqx.tree_at(lambda one: one.updates, learner, learner.updates + self.updates)

    def recall(
        self,
        key: PRNGKeyArray,
        learner: Learner,
        experience: Experience,
        counts: Bool[Array, "T worlds"] | None = None,
    ) -> tuple[Learner, Lesson]:
        """Keeps the experience and draws the windows of all gradient steps of the round from what is kept.

        Rows that do not count (None: all do) only hold the observation that follows the one before.
        """
        assert learner.replay is not None
        outcome = experience.transition
        if counts is not None:
            outcome = replace(
                outcome,
                reward=jnp.where(counts, outcome.reward, 0.0),
                terminated=outcome.terminated & counts,
                truncated=outcome.truncated & counts,
            )
        reward = beside_siblings(outcome.reward, self.siblings)
        kept = outcome.reward if self.compares else reward
        experience = replace(experience, transition=replace(outcome, reward=kept))
        added = learner.replay.add(experience, self._snapshots(learner.networks.memory, experience), counts)
        scale = learner.scale
        if not self.value_scale:
            guess = ValueScale.guess(reward, outcome.terminated, self.discount)
            scale = jax.tree.map(lambda new, old: jnp.where(learner.updates == 0, new, old), guess, scale)
        count, length = self.batch_size // self.window, self.window + self.steps
        together = self.siblings if self.compares else 1
        keys = jax.random.split(key, self.updates)
        windows = jax.vmap(lambda one: added.windows(one, count, length, together))(keys)
        learner = eqx.tree_at(lambda one: (one.replay, one.scale), learner, (added, scale))
        return learner, Lesson(windows, added.size >= self.warm_up)

    def learn(
        self, key: PRNGKeyArray, learner: Learner, lesson: Lesson
    ) -> tuple[Learner, dict[str, Float[Array, ""]]]:
        """`updates` gradient steps, once there is enough to begin with."""
        received, replay = learner.networks, learner.replay

        def update(one: Learner, row: tuple[Sample, PRNGKeyArray]) -> tuple[Learner, tuple[Array, dict]]:
            sample, step_key = row
            learned, error, metrics = self.advance(step_key, one, received, sample)
            return learned, (error, metrics)

        def begin(one: Learner) -> tuple[Learner, tuple[Array, dict]]:
            return jax.lax.scan(update, one, (lesson.windows, jax.random.split(key, self.updates)))

        def wait(one: Learner) -> tuple[Learner, tuple[Array, dict]]:
            outcome = jax.eval_shape(lambda same: begin(same)[1], one)
            return one, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), outcome)

        # the replay stays outside of the loop: only its priorities follow from what is learned
        without = eqx.tree_at(lambda one: one.replay, learner, None)
        learned, (error, metrics) = jax.lax.cond(lesson.ready, begin, wait, without)
        if replay is not None and self.priority == "td-error":
            index, each = jnp.concatenate(lesson.windows.index), jnp.concatenate(error, axis=-1)
            weighed = replay.with_priorities(index, each).priority
            replay = replay.prioritised_by(select(lesson.ready, weighed, replay.priority))
        learned = eqx.tree_at(lambda one: one.replay, learned, replay, is_leaf=lambda leaf: leaf is None)
        return learned, jax.tree.map(jnp.mean, metrics)

    def advance(
        self, key: PRNGKeyArray, learner: Learner, received: Networks, sample: Sample
    ) -> tuple[Learner, Float[Array, "rows windows"], dict[str, Float[Array, ""]]]:
        """One gradient step, and the slow copies after it: the learner, without a replay, the size of each row's
        error, figures."""
        networks, optimiser, error, metrics = self.step(key, learner, received, sample)
        targets = self.followed(learner, networks)
        return Learner(networks, targets, optimiser, None, learner.scale, learner.updates + 1), error, metrics

    def followed(self, learner: Learner, networks: Networks) -> PyTree:
        """The slow copies after the gradient step that ended in `networks`."""
        rate = jnp.where(self.delayed(learner), self.target_rate, 0.0)
        return optax.incremental_update(self.slow(networks), learner.targets, rate)

    def _snapshots(self, remembering: Any, experience: Experience) -> PyTree:
        """Memory before every `window`-th row, by the networks that acted."""
        after = unroll(remembering, experience.memory, experience.observation)
        return jax.tree.map(
            lambda first, later: jnp.concatenate([first[None], later[:-1]])[:: self.window], experience.memory, after
        )

    def delayed(self, learner: Learner) -> Bool[Array, ""]:
        """Whether this gradient step is also one of what follows the critics at a distance."""
        return (learner.updates + 1) % self.update_delay == 0

    def batch(self, remembering: Any, sample: Sample) -> Batch:
        """The rows of a sample with what was remembered at each, by the memory module `remembering`."""
        memory = unroll(remembering, sample.memory, sample.observation)
        taken = n_step(sample.reward, sample.terminated, sample.truncated, sample.valid, self.steps, self.discount)
        rows = taken.gain.shape[0]
        held, seen, done = jax.tree.map(lambda leaf: leaf[:rows], (memory, sample.observation, sample.action))
        following_memory, following = rows_at((memory, sample.observation), taken.successor)
        weight = taken.counts * sample.weight
        weight = weight / jnp.maximum(weight.sum(), 1e-6)
        return Batch(held, seen, done, taken.gain, taken.factor, following_memory, following, weight)

    def descend(
        self,
        gradient: PyTree,
        module: PyTree,
        state: PyTree,
        received: PyTree,
        optimiser: optax.GradientTransformation | None = None,
    ) -> tuple[PyTree, PyTree]:
        """A step of the optimiser (None: `optimiser()`): the module after it, and the optimiser's state."""
        gradient = pulled_back(gradient, module, received, self.proximal)
        updates, state = (optimiser or self.optimiser()).update(gradient, state, module)
        return optax.apply_updates(module, updates), state

    def begun(self, part: Any, optimiser: optax.GradientTransformation | None = None) -> PyTree:
        """The state of an optimiser (None: `optimiser()`) of this part of the networks."""
        return (optimiser or self.optimiser()).init(part)

    def optimiser(self, rate: optax.Schedule | None = None) -> optax.GradientTransformation:
        """Adam on clipped gradients; None: at `learning_rate`."""
        return optax.chain(
            optax.clip_by_global_norm(self.max_gradient_norm),
            optax.adam(self.learning_rate if rate is None else rate, eps=1e-5),
        )
