"""What a user may set about LunarLander."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LunarLanderSettings:
    """Gymnasium's LunarLander-v3 with discrete engines; defaults are Gymnasium's own."""

    gravity: float = -10.0
    """Acceleration downwards in the engine's units, above -12 and below 0."""
    enable_wind: bool = False
    """Wind and turbulence push and turn the lander until a leg touches the ground."""
    wind_power: float = 15.0
    """Strength of the wind along the ground, from 0 to 20."""
    turbulence_power: float = 1.5
    """Strength of the turbulence that turns the lander, from 0 to 2."""
    time_limit: int = 1000
    """Decisions after which an episode is cut off."""
    shaped: bool = False
    """Learn from a reward that is lower by 0.05 times the distance from the pad's middle, at every decision."""
