"""Native where possible, transformers otherwise, an error that names the reason where neither."""

from __future__ import annotations

import pytest

from coldstream.errors import UnknownArchitecture, UnsupportedConfig
from coldstream.model.choice import stand_up
from coldstream.model.config import is_native
from coldstream.model.decoder import Decoder
from coldstream.model.fallback import FallbackDecoder
from tests.model import tiny
from tests.model.test_fallback import make


def test_a_known_architecture_is_native() -> None:
    made = tiny.llama()
    decoder, _ = stand_up(
        made.config, {name: tensor.shape for name, tensor in made.tensors.items()}, precision="float32"
    )
    assert isinstance(decoder, Decoder)
    assert is_native(made.config)


def test_another_architecture_goes_through_transformers() -> None:
    made = make("Phi3")
    decoder, _ = stand_up(
        made.config, {name: tensor.shape for name, tensor in made.tensors.items()}, precision="float32"
    )
    assert isinstance(decoder, FallbackDecoder)
    assert not is_native(made.config)


def test_int8_is_refused_where_only_transformers_can_serve() -> None:
    with pytest.raises(UnsupportedConfig, match="int8"):
        stand_up(make("Phi3").config, {}, precision="int8")


def test_what_neither_knows_is_named() -> None:
    with pytest.raises(UnknownArchitecture, match="EvilForCausalLM"):
        stand_up({"architectures": ["EvilForCausalLM"]}, {}, precision="float32")
