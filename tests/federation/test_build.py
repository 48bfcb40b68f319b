"""Settings that cannot be are refused by name before anything is compiled."""

import numpy as np
import pytest

from dynamic_graph_fed_rl.federation.build import build
from dynamic_graph_fed_rl.federation.settings import FEDERATIONS, POOLED, FederationSettings

# federation, settings, what the message must say
REFUSED = [
    ("sever", {}, r"federation 'sever': unknown; known: server, tree"),
    ("server", {"aggregator": "men"}, r"'men': unknown; known: .*mean"),
    ("server", {"codec": "zip"}, r"codec 'zip': unknown; known: raw"),
    ("gossip", {"overlay": "line"}, r"overlay 'line': unknown; known: complete, ring"),
    ("gossip", {"overlay": "random", "degree": 3}, r"degree 3: must be at least 1, and even"),
    ("gossip", {"link_failure": 1.0}, r"link_failure 1.0: must be a probability below 1"),
    ("server", {"dropout": 1.0}, r"dropout 1.0: must be a share below 1"),
    ("server", {"absence_rounds": 0.5}, r"absence_rounds 0.5: an absence lasts"),
    ("server", {"step_times": (1.0, 2.0)}, r"step_times \[1.0, 2.0\]: needs one for each of the 8 agents"),
    ("server", {"step_times": (0.5,) * 8}, r"step_times .*: a round of learning takes at least 1 tick"),
    ("server", {"buffer": 9}, r"buffer 9: must be from 1 to the 8 agents"),
    ("tree", {"branches": (4, 2)}, r"branches \[4, 2\]: must grow from the top"),
    ("tree", {"branches": (9,)}, r"branches \[9\]: must grow .* no more than the 8 agents"),
    ("tree", {"branches": (2,), "clocks": (2, 3)}, r"clocks \[2, 3\]: needs 2, .* multiple"),
    ("tree", {"branches": (2,), "clocks": (1,)}, r"clocks \[1\]: needs 2"),
    ("server", {"byzantine": 8}, r"byzantine 8: must be fewer than the 8 agents"),
    ("server", {"byzantine": 3, "aggregator": "krum"}, r"byzantine 3: aggregator 'krum' among 8 .* at most 2"),
    ("gossip", {"byzantine": 2, "aggregator": "median"}, r"byzantine 2: aggregator 'median' among 3 .* at most 1"),
    ("server", {"byzantine": 1, "attack": "bribe"}, r"attack 'bribe': unknown; known: "),
    ("gossip", {"privacy": "dp"}, r"privacy 'dp': needs federation 'server'"),
    ("server", {"privacy": "secure", "aggregator": "krum"}, r"'secure' with aggregator 'krum': a rule that must see"),
    ("server", {"privacy": "dp", "aggregator": "median"}, r"'dp' with aggregator 'median': a rule that must see"),
    ("server", {"privacy": "secure", "codec": "int8"}, r"'secure' with codec 'int8': masked updates"),
    ("server", {"privacy": "dp", "buffer": 2}, r"privacy 'dp': every agent counts the same"),
]


@pytest.mark.parametrize(("federation", "settings", "message"), REFUSED)
def test_refused(federation, settings, message):
    with pytest.raises(ValueError, match=message):
        build(FederationSettings(**settings), federation, 8)


@pytest.mark.parametrize("federation", FEDERATIONS)
def test_defaults_of_every_federation(federation):
    # a server's learner is one more, where experience is pooled
    assert build(FederationSettings(), federation, 8).agents == 8 + (federation in POOLED)


def test_a_disconnected_overlay_is_refused_with_its_parts_or_accepted_by_name(tmp_path):
    path = tmp_path / "two.csv"
    np.savetxt(path, np.kron(np.eye(2), np.ones((2, 2))), fmt="%d", delimiter=",")
    with pytest.raises(ValueError, match=r"two.csv': falls into parts .*\[0, 1\]; \[2, 3\]"):
        build(FederationSettings(overlay=str(path)), "gossip", 4)
    with pytest.warns(UserWarning, match=r"\[0, 1\]; \[2, 3\]"):
        build(FederationSettings(overlay=str(path), allow_disconnected=True), "gossip", 4)


def test_a_rule_that_bears_nobody_is_warned_of():
    with pytest.warns(UserWarning, match=r"aggregator 'mean' among 8: bears no Byzantine agent"):
        build(FederationSettings(byzantine=3), "server", 8)
