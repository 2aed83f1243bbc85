"""A config.json cannot name more layers than there are tensors."""

from __future__ import annotations

from typing import Any

import pytest

from coldstream.errors import ParameterMismatch
from coldstream.model.depth import refuse_more_layers_than_tensors

MANY = 30_000_000


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"num_hidden_layers": MANY}, "num_hidden_layers"),
        ({"n_layer": MANY}, "n_layer"),
        ({"text_config": {"num_hidden_layers": MANY}}, r"text_config\.num_hidden_layers"),
        ({"num_hidden_layers": 13}, "num_hidden_layers = 13, but the checkpoint has 12 tensors"),
    ],
)
def test_more_layers_than_tensors_are_refused_by_name(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ParameterMismatch, match=named):
        refuse_more_layers_than_tensors(config, 12)


@pytest.mark.parametrize("config", [{}, {"num_hidden_layers": 12}, {"text_config": None}, {"num_hidden_layers": "x"}])
def test_as_many_layers_as_tensors_are_the_models_own_affair(config: dict[str, Any]) -> None:
    refuse_more_layers_than_tensors(config, 12)
