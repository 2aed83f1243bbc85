"""As many layers as a config.json may claim: each has at least one tensor of its own, whatever the architecture.

Looked at before anything is built, since building as many as a number says may take all there is of time and memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from coldstream.errors import ParameterMismatch

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")


def refuse_more_layers_than_tensors(config: Mapping[str, Any], tensors: int) -> None:
    """Hold what a config.json says of its text model against the number of a checkpoint's tensors.

    Raises:
        ParameterMismatch: it names more layers than there are tensors.
    """
    for name, layers in _claims(config):
        if layers > tensors:
            raise ParameterMismatch(
                f"config.json: {name} = {layers}, but the checkpoint has {tensors} tensors, fewer than one for each "
                "layer; upload the config.json that belongs to the weights"
            )


def _claims(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    text = config.get("text_config")
    parts = (("", config), ("text_config.", text if isinstance(text, Mapping) else {}))
    for prefix, part in parts:
        for name in _LAYERS:
            if isinstance(part.get(name), int):
                yield prefix + name, part[name]
