"""What a user may set about Pendulum."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PendulumSettings:
    """Swinging up a pendulum, with the constants of Gymnasium's Pendulum-v1."""

    time_limit: int = 200
    """Steps after which an episode is cut off."""
    gravity_m_s2: float = 10.0
    """Acceleration of gravity [m/s^2]."""
