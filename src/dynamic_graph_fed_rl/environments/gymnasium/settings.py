"""What a user may set about an environment of Gymnasium."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GymnasiumSettings:
    """Any environment that Gymnasium knows, if its actions are a Discrete or a bounded Box."""

    id: str = "CartPole-v1"
    """Gymnasium's name for it; module:name imports the module first."""
    arguments: str = ""
    """Further arguments of it, as YAML: {continuous: true, wind_power: 10}."""
    time_limit: int | None = None
    """Steps after which an episode is cut off; default: the environment's own."""
