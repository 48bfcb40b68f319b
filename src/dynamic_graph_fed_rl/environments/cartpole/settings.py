"""What a user may set about CartPole."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CartPoleSettings:
    """Pole balancing with the limits of Gymnasium's CartPole-v1."""

    time_limit: int = 500
    """Steps after which an episode is cut off."""
    half_length_m: float = 0.5
    """Half of the pole's length [m]."""
