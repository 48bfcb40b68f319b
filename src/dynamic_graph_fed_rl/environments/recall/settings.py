"""What a user may set about recall."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RecallSettings:
    """Three nodes in a ring, each asked about what it saw some decisions ago."""

    task: Literal["flag", "average"] = "flag"
    """What each node is asked: the flag that it showed at the first decision, once; or at every decision whether its
    demand was above 0 on average, while nodes come and go."""
    delay: int = 10
    """Decisions between flag and question, or that the average goes over (k)."""
