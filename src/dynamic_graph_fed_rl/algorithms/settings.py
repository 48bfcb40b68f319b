"""Every algorithm by name: its hyperparameters, and the module that builds it. No jax import."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PPOSettings:
    """Proximal policy optimisation (Schulman et al. 2017), clipped a slot at a time."""

    learning_rate: float = 1e-3
    """Adam's step size; falls linearly to 0 over the run."""
    discount: float = 0.99
    """Weight of the next decision's value (gamma)."""
    trace: float = 0.95
    """Mixing of one-step and full returns (lambda of generalised advantage estimation)."""
    clip: float = 0.2
    """How far a slot's likelihood ratio may move before its gradient stops."""
    entropy_weight: float = 0.0
    """Bonus for entropy of the policy, per slot."""
    value_weight: float = 0.5
    """Weight of the critic's error."""
    max_gradient_norm: float = 0.5
    """Gradients are scaled down to this global norm."""
    epochs: int = 4
    """Passes over a round's experience."""
    minibatches: int = 4
    """Parts of a pass; worlds are divided among them."""
    width: int = 32
    """Width of the hidden layers."""
    layers: int = 1
    """Message-passing layers."""
    initial_std: float = 0.1
    """Standard deviation of exploration at the start, continuous actions, of a range of [-1, 1]."""


@dataclass(frozen=True)
class Entry:
    """`module` offers `build(settings, rounds) -> Algorithm`; `actions` are the kinds it can act with."""

    help: str
    settings: type
    module: str
    actions: tuple[str, ...]


ALGORITHMS = {
    "ppo": Entry(
        "on-policy actor-critic with clipped updates; continuous and discrete actions",
        PPOSettings,
        "dynamic_graph_fed_rl.algorithms.ppo",
        ("continuous", "discrete"),
    ),
}
