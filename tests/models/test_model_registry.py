"""Choosing a graph network by name."""

import pytest

from dynamic_graph_fed_rl.algorithms.settings import ALGORITHMS, PPOSettings
from dynamic_graph_fed_rl.models.registry import ENCODERS, MEMORIES


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_default_is_known_to_every_algorithm(algorithm):
    settings = ALGORITHMS[algorithm].settings()
    assert settings.encoder in ENCODERS and (settings.memory is None or settings.memory in MEMORIES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder": "gcn-lstm"}, "encoder 'gcn-lstm': unknown; known: edge-gated, gatv2, transformer, tgn, gru,"),
        ({"encoder": "leaky"}, "encoder 'leaky': unknown; known: .*temporal_attention, static_gcn"),
        ({"memory": "lstm"}, "memory 'lstm': unknown; known: none, leaky, gru, mingru, tgn, multi-scale"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(values, message):
    with pytest.raises(ValueError, match=message):
        PPOSettings(**values).check(4, 4)
