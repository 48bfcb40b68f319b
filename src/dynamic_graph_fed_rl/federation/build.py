"""A federation from its settings; what cannot be is refused before anything is compiled."""

import warnings
from dataclasses import replace
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from dynamic_graph_fed_rl.federation.aggregators.base import Aggregator
from dynamic_graph_fed_rl.federation.aggregators.registry import build as build_aggregator
from dynamic_graph_fed_rl.federation.attacks import build as build_attack
from dynamic_graph_fed_rl.federation.codecs import CODECS, Codec
from dynamic_graph_fed_rl.federation.federation import Alone, Federation
from dynamic_graph_fed_rl.federation.gossip import Gossip
from dynamic_graph_fed_rl.federation.hierarchy import Hierarchy, Level
from dynamic_graph_fed_rl.federation.method import Method
from dynamic_graph_fed_rl.federation.overlay import Overlay
from dynamic_graph_fed_rl.federation.overlay import build as build_overlay
from dynamic_graph_fed_rl.federation.privacy import ClientLevelDP
from dynamic_graph_fed_rl.federation.schedule import Schedule
from dynamic_graph_fed_rl.federation.secure import SecureMean, agree, fresh_keys
from dynamic_graph_fed_rl.federation.settings import FEDERATIONS, POOLED, FederationSettings


def build(settings: FederationSettings, federation: str, agents: int, rounds: int = 1) -> Federation:
    """The federation of that name among `agents` agents; `rounds` is the length of the server's rate schedule.

    Raises:
        ValueError: names the setting that cannot be, its value, and what would be right.
    """
    if federation not in FEDERATIONS:
        raise ValueError(f"federation '{federation}': unknown; known: {', '.join(FEDERATIONS)}")
    _refuse_contradictions(settings, federation, agents)
    attack = build_attack(settings.attack) if settings.byzantine else None
    # where experience is pooled, the server's learner is one row more, before the agents'
    rows = agents + (federation in POOLED)
    return Federation(
        method=_method(settings, federation, rows, rounds),
        schedule=_schedule(settings, agents, rows),
        weights=_weights(settings, federation, agents),
        byzantine=jnp.arange(rows) >= rows - settings.byzantine,
        staleness_power=jnp.asarray(settings.staleness_power),
        attack=attack,
    )


def _method(settings: FederationSettings, federation: str, agents: int, rounds: int) -> Method:
    if federation in ("independent", "centralised"):
        return Alone()
    codec = _codec(settings)
    if federation == "gossip":
        overlay = _overlay(settings, agents)
        rule = _rule(settings, overlay.fewest_heard())
        return Gossip(rule, codec, overlay, settings.gossip_step, settings.link_failure)
    return Hierarchy(_levels(settings, federation, agents, codec, _optimiser(settings, rounds)))


def _codec(settings: FederationSettings) -> Codec:
    if settings.codec not in CODECS:
        raise ValueError(f"codec '{settings.codec}': unknown; known: {', '.join(CODECS)}")
    entry = CODECS[settings.codec]
    return entry.build(**{name: getattr(settings, option) for name, option in entry.options.items()})


def _levels(
    settings: FederationSettings,
    federation: str,
    agents: int,
    codec: Codec,
    optimiser: optax.GradientTransformation | None,
) -> tuple[Level, ...]:
    """From the agents up; each node's members are neighbours in number, as even as can be."""
    sizes = [agents, *reversed(settings.branches), 1] if federation == "tree" else [agents, 1]
    if any(below < above for below, above in pairwise(sizes)) or min(sizes) < 1:
        raise ValueError(
            f"branches {list(settings.branches)}: must grow from the top and end at no more than the {agents} agents"
        )
    clocks = settings.clocks or (1,) * (len(sizes) - 1)
    if len(clocks) != len(sizes) - 1 or min(clocks) < 1 or any(above % below for below, above in pairwise(clocks)):
        raise ValueError(
            f"clocks {list(clocks)}: needs {len(sizes) - 1}, from the leaves up, each a multiple of the one before"
        )
    levels = []
    for i, (members, nodes) in enumerate(pairwise(sizes)):
        parent = np.repeat(np.arange(nodes), [len(part) for part in np.array_split(np.arange(members), nodes)])
        root = i == len(sizes) - 2
        levels.append(
            Level(
                parent.tolist(),
                _rule(settings, int(np.bincount(parent).min())),
                codec,
                optimiser if root else None,
                clocks[i],
                settings.buffer if i == 0 else 1,
            )
        )
    return tuple(levels)


def _rule(settings: FederationSettings, senders: int) -> Aggregator:
    """The aggregator, which must bear the attackers that are expected among so many senders."""
    if settings.privacy == "dp":
        return ClientLevelDP(settings.dp_clip, settings.dp_noise)
    if settings.privacy == "secure":
        return SecureMean(agree(fresh_keys(senders)))
    expected = settings.assumed_byzantine or settings.byzantine
    rule = build_aggregator(replace(settings, assumed_byzantine=expected))
    bound = rule.tolerance(senders)
    if settings.byzantine and not bound:
        warnings.warn(f"aggregator '{settings.aggregator}' among {senders}: bears no Byzantine agent", stacklevel=2)
    elif expected > bound:
        raise ValueError(
            f"byzantine {expected}: aggregator '{settings.aggregator}' among {senders} senders bears at most {bound}"
        )
    return rule


def _optimiser(settings: FederationSettings, rounds: int) -> optax.GradientTransformation | None:
    rate = settings.server_learning_rate
    constant = settings.server_rate_schedule == "constant"
    course = rate if constant else optax.cosine_decay_schedule(rate, rounds)
    if settings.server_optimiser == "momentum":
        if not 0.0 <= settings.server_momentum < 1.0:
            raise ValueError(f"server_momentum {settings.server_momentum}: must be a share below 1")
        return optax.sgd(course, momentum=settings.server_momentum)
    if settings.server_optimiser == "adam":
        # Reddi et al. 2021, their defaults for beta_2 and tau
        return optax.adam(course, b1=0.9, b2=0.99, eps=1e-3)
    # the plain update, untouched
    return None if constant and rate == 1.0 else optax.sgd(course)


def _weights(settings: FederationSettings, federation: str, agents: int) -> Array:
    """How much each row's update counts."""
    weights = _per_agent("agent_weights", settings.agent_weights, agents, 1.0)
    if federation not in POOLED:
        return weights
    if not 0 < settings.server_share < 1:
        raise ValueError(f"server_share {settings.server_share}: must be above 0 and below 1")
    if federation == "shared":
        return jnp.concatenate([jnp.ones(1), jnp.zeros(agents)])
    server = weights.sum() * settings.server_share / (1 - settings.server_share)
    return jnp.concatenate([server[None], weights])


def _schedule(settings: FederationSettings, agents: int, rows: int) -> Schedule:
    if not 0.0 <= settings.dropout < 1.0:
        raise ValueError(f"dropout {settings.dropout}: must be a share below 1")
    if settings.absence_rounds < 1.0:
        raise ValueError(f"absence_rounds {settings.absence_rounds}: an absence lasts at least 1 round")
    if settings.step_times and min(settings.step_times) < 1.0:
        raise ValueError(f"step_times {list(settings.step_times)}: a round of learning takes at least 1 tick")

    def to_rows(name: str, default: float | int) -> Array:
        """One for each agent, after the default for a row that is none: a server is always there."""
        each = _per_agent(name, getattr(settings, name), agents, default)
        return jnp.concatenate([jnp.full(rows - agents, default, each.dtype), each])

    never = np.iinfo(np.int32).max
    return Schedule(
        to_rows("step_times", 1.0),
        jnp.concatenate([jnp.zeros(rows - agents), jnp.full(agents, settings.dropout)]),
        jnp.asarray(settings.absence_rounds),
        to_rows("joins", 0).astype(jnp.int32),
        to_rows("leaves", never).astype(jnp.int32),
        settings.schedule == "asynchronous",
        not (settings.dropout or settings.joins or settings.leaves or settings.step_times),
    )


def _per_agent(name: str, values: tuple, agents: int, default: float | int) -> Array:
    if values and len(values) != agents:
        raise ValueError(f"{name} {list(values)}: needs one for each of the {agents} agents")
    return jnp.asarray(np.asarray(values or [default] * agents))


def _overlay(settings: FederationSettings, agents: int) -> Overlay:
    """The overlay, in one part unless parts are accepted."""
    if settings.degree < 1:
        raise ValueError(f"degree {settings.degree}: must be at least 1")
    if not 0.0 <= settings.link_failure < 1.0:
        raise ValueError(f"link_failure {settings.link_failure}: must be a probability below 1")
    overlay = build_overlay(settings.overlay, agents, settings.degree)
    parts = overlay.components()
    if len(parts) > 1:
        listed = "; ".join(map(str, parts))
        text = f"overlay '{settings.overlay}': falls into parts that never hear each other: {listed}"
        if not settings.allow_disconnected:
            raise ValueError(f"{text} (allow_disconnected accepts it)")
        warnings.warn(text, stacklevel=2)
    return overlay


def _refuse_contradictions(settings: FederationSettings, federation: str, agents: int) -> None:
    if not 0 <= settings.byzantine < agents and settings.byzantine:
        raise ValueError(f"byzantine {settings.byzantine}: must be fewer than the {agents} agents")
    if settings.buffer < 1 or settings.buffer > agents:
        raise ValueError(f"buffer {settings.buffer}: must be from 1 to the {agents} agents")
    if settings.privacy == "none":
        return
    label = f"privacy '{settings.privacy}'"
    if federation != "server":
        raise ValueError(f"{label}: needs federation 'server', which alone sees nothing but an aggregate")
    if build_aggregator(settings).sees_single_updates:
        raise ValueError(
            f"{label} with aggregator '{settings.aggregator}': a rule that must see single updates cannot go with "
            "a mode that hides them; only 'mean' without clip_norm and bucket can"
        )
    if settings.agent_weights or settings.buffer > 1:
        raise ValueError(f"{label}: every agent counts the same and once; agent_weights and buffer cannot be set")
    if settings.privacy == "secure" and settings.codec != "raw":
        raise ValueError(
            f"{label} with codec '{settings.codec}': masked updates are fixed-point sums, which no lossy codec keeps"
        )
    if settings.dp_clip <= 0 or settings.dp_noise <= 0 or not 0 < settings.dp_delta < 1:
        raise ValueError("dp_clip and dp_noise must be above 0, dp_delta between 0 and 1")
