"""What a user may set about drift."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DriftSettings:
    """Four numbers pushed up or down together, to be held near 0; agents push with unlike strength."""

    first_difficulty: float = 0.5
    """Difficulty of agent 0: a push moves every number by a tenth of it."""
    difficulty_spacing: float = 0.2
    """How much more difficult each agent's world is than that of the agent before it."""
    time_limit: int = 200
    """Steps after which an episode is cut off."""
