"""Native where possible, transformers otherwise, an error that names the reason where neither."""

from __future__ import annotations

import pytest

from coldstream.backends.assembly import Assembly
from coldstream.backends.torch.choice import stand_up
from coldstream.backends.torch.decoder import Decoder
from coldstream.backends.torch.fallback import FallbackDecoder
from coldstream.errors import ParameterMismatch, UnknownArchitecture, UnsupportedConfig
from coldstream.model.config import is_native
from tests.backends.torch.test_fallback import make
from tests.support import tiny
from tests.support.tiny_vision import gemma3_vision


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


@pytest.mark.parametrize("change", [{"use_bidirectional_attention": True}, {"rms_norm_eps": None}])
def test_what_neither_serves_is_refused_with_the_native_decoders_reason(change: dict[str, object]) -> None:
    with pytest.raises(UnsupportedConfig, match=next(iter(change))):
        stand_up(tiny.gemma3().config | change, {}, precision="float32")


def test_an_image_text_config_without_a_towers_tensors_makes_a_text_model() -> None:
    made = gemma3_vision()
    tensors = {
        name: tensor for name, tensor in made.tensors.items() if "vision" not in name and "projector" not in name
    }
    decoder, assembly = stand_up(made.config, {name: item.shape for name, item in tensors.items()}, precision="float32")
    assert decoder.vision is None
    assert isinstance(assembly, Assembly)
    assert not assembly.vision
    whole, _ = stand_up(made.config, {name: item.shape for name, item in made.tensors.items()}, precision="float32")
    assert whole.vision is not None


def test_half_a_tower_is_refused_by_the_name_of_what_is_missing() -> None:
    made = gemma3_vision()
    shapes = {name: item.shape for name, item in made.tensors.items() if "projector" not in name}
    with pytest.raises(ParameterMismatch, match="multi_modal_projector"):
        stand_up(made.config, shapes, precision="float32")


@pytest.mark.parametrize(
    "architectures", [["FSDPPhi3ForCausalLM"], ["PeftModelForCausalLM"], ["LlamaForCausalLM"], None]
)
def test_model_type_decides_for_transformers_too(architectures: list[str] | None) -> None:
    made = make("Phi3")
    shapes = {name: item.shape for name, item in made.tensors.items()}
    decoder, _ = stand_up(made.config | {"architectures": architectures}, shapes, precision="float32")
    assert decoder.config.architecture == "Phi3ForCausalLM"


def test_what_neither_knows_is_named() -> None:
    with pytest.raises(UnknownArchitecture, match="EvilForCausalLM"):
        stand_up({"architectures": ["EvilForCausalLM"]}, {}, precision="float32")
