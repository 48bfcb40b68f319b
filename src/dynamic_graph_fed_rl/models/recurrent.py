"""Learned memories of one node at a time: a recurrent unit fed with the node's own features."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.models.layers import Affine
from dynamic_graph_fed_rl.models.memory import NodeMemory, present, starts_afresh

# decisions; the longest time scale of the leaky bank
LONGEST_SCALE = 100


def chrono_bias(key: PRNGKeyArray, width: int) -> Float[Array, " width"]:
    """Logits of keeping, such that what units hold fades over 1 to `LONGEST_SCALE` decisions at the start.

    Chrono initialisation (Tallec and Ollivier 2018, section 2): without it a unit forgets within a few decisions, and
    no gradient tells it what it should have kept.
    """
    return jnp.log(jax.random.uniform(key, (width,), minval=1.0, maxval=LONGEST_SCALE - 1.0))


class GRUCell(eqx.Module):
    """Gated recurrent unit (Cho et al. 2014), the reset gate behind the recurrent product as in cuDNN.

    `n = tanh(W x + b + reset * (U h + c))`, then `keep * h + (1 - keep) * n`; both projections hold the columns
    of reset, keep and n in this order.
    """

    inputs: Affine
    hidden: Affine

    def __init__(self, key: PRNGKeyArray, inputs: int, width: int):
        input_key, hidden_key, bias_key = jax.random.split(key, 3)
        one = Affine(input_key, inputs, 3 * width, gain=1.0)
        self.inputs = eqx.tree_at(
            lambda a: a.bias, one, one.bias.at[width : 2 * width].set(chrono_bias(bias_key, width))
        )
        self.hidden = Affine(hidden_key, width, 3 * width, gain=1.0)

    def __call__(
        self, x: Float[Array, "*batch inputs"], hidden: Float[Array, "*batch width"]
    ) -> Float[Array, "*batch width"]:
        reset_x, keep_x, new_x = jnp.split(self.inputs(x), 3, axis=-1)
        reset_h, keep_h, new_h = jnp.split(self.hidden(hidden), 3, axis=-1)
        keep = jax.nn.sigmoid(keep_x + keep_h)
        new = jnp.tanh(new_x + jax.nn.sigmoid(reset_x + reset_h) * new_h)
        return keep * hidden + (1.0 - keep) * new


class MinGRUCell(eqx.Module):
    """Minimal recurrent unit: gate and candidate read the input only (Feng et al. 2024, section 3.1).

    What is held never goes through a nonlinearity, so it neither grows nor has to be learned to persist.
    """

    keep: Affine
    new: Affine

    def __init__(self, key: PRNGKeyArray, inputs: int, width: int):
        keep_key, new_key, bias_key = jax.random.split(key, 3)
        one = Affine(keep_key, inputs, width, gain=1.0)
        self.keep = eqx.tree_at(lambda a: a.bias, one, chrono_bias(bias_key, width))
        self.new = Affine(new_key, inputs, width, gain=1.0)

    def __call__(
        self, x: Float[Array, "*batch inputs"], hidden: Float[Array, "*batch width"]
    ) -> Float[Array, "*batch width"]:
        keep = jax.nn.sigmoid(self.keep(x))
        return keep * hidden + (1.0 - keep) * self.new(x)


class RecurrentMemory(eqx.Module):
    """Per node: its features when last seen, and what the unit holds."""

    latest: Float[Array, "*batch nodes features"]
    hidden: Float[Array, "*batch nodes width"]


class Recurrent(NodeMemory):
    """One recurrent unit for all nodes; what is read is the node's features and what its unit holds."""

    cell: GRUCell | MinGRUCell
    width: int = eqx.field(static=True)

    def features(self, node_features: int) -> int:
        return node_features + self.width

    def initial(self, observation: Observation) -> RecurrentMemory:
        nodes = observation.graph.nodes
        return RecurrentMemory(jnp.zeros_like(nodes), jnp.zeros((*nodes.shape[:-1], self.width)))

    def remember(self, memory: RecurrentMemory, observation: Observation) -> RecurrentMemory:
        nodes = present(observation.graph.nodes, observation)
        hidden = jnp.where(starts_afresh(observation)[..., None], 0.0, memory.hidden)
        return RecurrentMemory(nodes, present(self.cell(nodes, hidden), observation))

    def read(self, memory: RecurrentMemory) -> Float[Array, "*batch nodes remembered"]:
        return jnp.concatenate([memory.latest, memory.hidden], axis=-1)
