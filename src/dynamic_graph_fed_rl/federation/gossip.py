"""No server: each agent aggregates what it hears from its neighbours."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.federation.aggregators.base import Aggregator
from dynamic_graph_fed_rl.federation.codecs import Codec, compress, payload_bytes
from dynamic_graph_fed_rl.federation.method import Exchanged, Method, pick
from dynamic_graph_fed_rl.federation.overlay import Links, Overlay
from dynamic_graph_fed_rl.federation.schedule import Plan

# numbers that the receivers who are worked on at once may gather: 16 MiB
_AT_ONCE = 2**22


class GossipState(eqx.Module):
    """`held` is what each agent last went on with; `public` what its neighbours know of it; `mass` its push-sum
    weight."""

    held: Float[Array, "agents size"]
    public: Float[Array, "agents size"] | None
    mass: Float[Array, " agents"]
    aggregator: PyTree


class Gossip(Method[GossipState]):
    """Each active agent moves by the aggregate of its neighbours' differences to itself.

    With a lossy codec an agent sends the change of its public copy, which is what its neighbours compare
    (CHOCO-SGD, Koloskova et al. 2019), and goes `step` of the way. On a directed overlay the mixing weights are
    multiplied by the senders' push-sum mass, which makes the mean unbiased. Agents that are busy are heard as
    they last were; where hearing is directed, only those that are active exchange, so that no mass is lost.
    """

    aggregator: Aggregator
    codec: Codec
    overlay: Overlay
    step: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=1.0)
    link_failure: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=0.0)

    def init(self, vectors: Float[Array, "agents size"]) -> GossipState:
        agents, size = vectors.shape
        memory = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], agents, axis=0), self.aggregator.init(size))
        # copies: the run's buffers are donated, and one buffer cannot be given away twice
        return GossipState(vectors + 0, vectors + 0 if self.codec.lossy else None, jnp.ones(agents), memory)

    def held(self, state: GossipState) -> Float[Array, "agents size"]:
        return state.held

    def exchange(
        self,
        key: PRNGKeyArray,
        state: GossipState,
        own: Float[Array, "agents size"],
        updates: Float[Array, "agents size"],
        plan: Plan,
        tick: Int[Array, ""],
    ) -> Exchanged:
        link_key, code_key, rule_key, failure_key = jax.random.split(key, 4)
        agents, size = own.shape
        sent, public, sound = self._sent(code_key, state, updates, plan)
        links = self.overlay.links(link_key)
        heard = jnp.isfinite(sent).all(1) & (plan.active if self.overlay.directed else plan.reachable)
        usable = plan.active[:, None] & heard[links.senders] & ~self._failed(failure_key, links)
        links = links.among(usable, self.overlay.directed)
        received = links.weights * state.mass[links.senders]
        kept = links.own * state.mass
        rows = jnp.concatenate([jnp.arange(agents)[:, None], links.senders], axis=1)
        weights = jnp.concatenate([kept[:, None], received], axis=1) * plan.weights[rows]
        weights = weights / weights.sum(1, keepdims=True)
        # neighbours compare public copies; without a codec these are the parameters themselves
        centre = own if public is None else public

        def receive(row: Array, weight: Array, mine: Array, memory: PyTree, one_key: PRNGKeyArray) -> tuple:
            # an agent is its own neighbour, at no distance
            differences = jnp.where((weight > 0)[:, None], sent[row] - mine, 0.0).at[0].set(0.0)
            update, memory, info = self.aggregator(differences, weight, mine, memory, one_key)
            return update, memory, info

        keys = jax.random.split(rule_key, agents)
        update, memory, info = jax.lax.map(
            lambda one: receive(*one),
            (rows, weights, centre, state.aggregator, keys),
            batch_size=max(1, min(agents, _AT_ONCE // (rows.shape[1] * size))),
        )
        mixed = pick(plan.active, own + self.step * update, own)
        report = {name: value.mean() for name, value in info.items()}
        report["rejected"] = (plan.active & ~sound).sum().astype(jnp.float32)
        # a lossy codec broadcasts changes; without one an agent sends to those who hear it this round
        travelled = (usable & (links.weights > 0)).sum()
        report["bytes"] = travelled * float(payload_bytes(self.codec, size) + 4 * self.overlay.directed)
        held = pick(plan.active, mixed, state.held)
        return GossipState(held, public, kept + received.sum(1), memory), mixed, report

    def _sent(
        self, key: PRNGKeyArray, state: GossipState, updates: Float[Array, "agents size"], plan: Plan
    ) -> tuple[Float[Array, "agents size"], Float[Array, "agents size"] | None, Bool[Array, " agents"]]:
        """What others hear of each agent, the public copies after it, and who sent nothing but finite numbers; the
        busy are heard as they were."""
        fresh = state.held + updates
        if state.public is None:
            return pick(plan.active, fresh, state.held), None, jnp.isfinite(fresh).all(1)
        keys = jax.random.split(key, fresh.shape[0])
        none = jnp.zeros(fresh.shape[1])
        change, _ = jax.vmap(compress, in_axes=(None, 0, None, 0))(self.codec, fresh - state.public, none, keys)
        sound = jnp.isfinite(change).all(1)
        public = pick(plan.active & sound, state.public + change, state.public)
        return public, public, sound

    def _failed(self, key: PRNGKeyArray, links: Links) -> Bool[Array, "agents links"]:
        """Links that are down; where hearing is mutual, both directions fail together."""
        agents = links.own.shape[0]
        receivers = jnp.broadcast_to(jnp.arange(agents)[:, None], links.senders.shape)
        first = receivers if self.overlay.directed else jnp.minimum(receivers, links.senders)
        second = links.senders if self.overlay.directed else jnp.maximum(receivers, links.senders)

        def draw(a: Int[Array, ""], b: Int[Array, ""]) -> Float[Array, ""]:
            return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, a), b))

        return jax.vmap(jax.vmap(draw))(first, second) < self.link_failure
