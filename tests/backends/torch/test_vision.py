"""The native SigLIP tower and projector agree with transformers, and a checkpoint that does not fit is named."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from coldstream.backends.assembly import Assembly
from coldstream.backends.torch.decoder import Decoder, DecoderPrecision
from coldstream.errors import ParameterMismatch, UnsupportedConfig
from coldstream.model.config import ModelConfig
from coldstream.model.image_processor import ImageProcessor, content_digest
from coldstream.model.vision_config import VisionConfig
from tests.support.tiny import Tiny
from tests.support.tiny_vision import SIZE, TOKENS, file_names, gemma3_vision, photo


def filled(tiny: Tiny, tensors: dict[str, torch.Tensor], precision: DecoderPrecision = "float32") -> Decoder:
    vision = VisionConfig.from_json(tiny.config)
    decoder = Decoder(ModelConfig.from_json(tiny.config), precision=precision, vision=vision)
    assembly = Assembly(decoder, {name: tensor.shape for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        assembly.assign(name, tensor)
    assembly.finish()
    return decoder


def reference_pixels(image: Image.Image, resample: int = 2) -> torch.Tensor:
    processor = transformers.Gemma3ImageProcessor(size={"height": SIZE, "width": SIZE}, resample=resample)
    return processor(images=[image], return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return gemma3_vision()


@pytest.mark.parametrize("version", ["4.51", "4.57", "5.23", "raw"])
def test_features_agree_from_the_image_file_on_every_key_layout(tiny: Tiny, version: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    photo(1).save(path)
    decoder = filled(tiny, file_names(tiny.tensors, version))
    processor = ImageProcessor.from_files({}, image_size=SIZE)
    with Image.open(path) as image:
        pixels = processor.normalise(processor.resize(image.convert("RGB")))
        theirs = tiny.model.get_image_features(reference_pixels(image)).pooler_output[0]
    assert decoder.vision is not None
    ours = decoder.vision.encode(torch.from_numpy(pixels))
    assert ours.shape == (TOKENS, tiny.config["text_config"]["hidden_size"])
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("precision", "likeness"), [("bfloat16", 0.999)])
def test_coarser_precisions_stay_close_to_float32(tiny: Tiny, precision: DecoderPrecision, likeness: float) -> None:
    pixels = torch.from_numpy(ImageProcessor(SIZE, SIZE).normalise(ImageProcessor(SIZE, SIZE).resize(photo(2))))
    exact, rough = filled(tiny, tiny.tensors).vision, filled(tiny, tiny.tensors, precision).vision
    assert exact is not None
    assert rough is not None
    ours, theirs = rough.encode(pixels), exact.encode(pixels)
    assert not torch.equal(ours, theirs)
    assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > likeness


@pytest.mark.parametrize("resample", [2, 3])
def test_pixels_agree_with_transformers_processor(resample: int) -> None:
    raw = f'{{"resample": {resample}, "size": {{"height": {SIZE}, "width": {SIZE}}}}}'.encode()
    processor = ImageProcessor.from_files({"preprocessor_config.json": raw}, image_size=SIZE)
    ours = torch.from_numpy(processor.normalise(processor.resize(photo(3))))
    torch.testing.assert_close(ours, reference_pixels(photo(3), resample)[0], atol=1e-6, rtol=0)


def test_the_processors_file_of_either_version_is_read(tmp_path: Path) -> None:
    theirs = transformers.Gemma3ImageProcessor(size={"height": SIZE, "width": SIZE}, resample=3, image_std=[0.2] * 3)
    theirs.save_pretrained(tmp_path)
    raw = (tmp_path / "preprocessor_config.json").read_bytes()
    old = ImageProcessor.from_files({"preprocessor_config.json": raw}, image_size=SIZE)
    new = ImageProcessor.from_files({"processor_config.json": b'{"image_processor": ' + raw + b"}"}, image_size=SIZE)
    assert old == new == ImageProcessor(SIZE, SIZE, resample=3, scale=theirs.rescale_factor, std=(0.2, 0.2, 0.2))


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"{", "not valid JSON"),
        (b'{"do_pan_and_scan": true, "size": 56}', "do_pan_and_scan"),
        (b'{"do_resize": false, "size": 56}', "do_resize"),
        (b'{"resample": 9}', "resample"),
        (b'{"resample": [2]}', "resample"),
        (b'{"do_resize": null}', "do_resize"),
        (b'{"do_rescale": null}', "do_rescale"),
        (b'{"do_center_crop": true}', "do_center_crop"),
        (b'{"size": {"shortest_edge": 56}}', "shortest_edge"),
        (b'{"image_processor_type": "SiglipImageProcessor"}', "image_processor_type"),
        (b'{"size": {"height": 224, "width": 224}}', "image_size"),
        (b'{"size": 56, "image_mean": [1, 2]}', "image_mean"),
        (b'{"size": 56, "image_std": [1, 0, 1]}', "image_std"),
    ],
)
def test_a_processor_that_cannot_be_honoured_is_refused_by_name(raw: bytes, named: str) -> None:
    with pytest.raises(UnsupportedConfig, match=named):
        ImageProcessor.from_files({"preprocessor_config.json": raw}, image_size=SIZE)


def test_a_digest_stands_for_the_pixels_and_their_shape() -> None:
    pixels = ImageProcessor(SIZE, SIZE).resize(photo(1))
    other = pixels.copy()
    other[0, 0, 0] ^= 1
    assert content_digest(pixels) == content_digest(pixels.copy())
    assert content_digest(pixels) != content_digest(other)
    assert content_digest(pixels) != content_digest(pixels.reshape(1, -1, 3))


def test_missing_vision_parameters_are_named(tiny: Tiny) -> None:
    tensors = file_names(tiny.tensors, "4.57")
    del tensors["vision_tower.vision_model.encoder.layers.1.mlp.fc2.bias"]
    with pytest.raises(ParameterMismatch, match=r"encoder\.layers\.1\.mlp\.fc2\.bias is missing"):
        filled(tiny, tensors)


def test_unexpected_vision_parameters_are_named(tiny: Tiny) -> None:
    extra = {"vision_tower.vision_model.encoder.layers.2.mlp.fc2.bias": torch.zeros(24)}
    with pytest.raises(ParameterMismatch, match=r"layers\.2\.mlp\.fc2\.bias is unexpected"):
        filled(tiny, file_names(tiny.tensors, "4.57") | extra)


def test_a_misshapen_projection_is_named(tiny: Tiny) -> None:
    name = "multi_modal_projector.mm_input_projection_weight"
    tensors = file_names(tiny.tensors, "5.23")
    tensors[name] = tensors[name].t()
    with pytest.raises(ParameterMismatch, match=name):
        filled(tiny, tensors)


def test_siglips_own_head_is_left_alone_with_a_reason() -> None:
    tiny = gemma3_vision(vision_use_head=True)
    decoder = Decoder(ModelConfig.from_json(tiny.config), vision=VisionConfig.from_json(tiny.config))
    assembly = Assembly(decoder, {name: tensor.shape for name, tensor in tiny.tensors.items()})
    heads = {name for name in tiny.tensors if ".vision_tower.head." in name}
    assert heads
    assert set(assembly.ignored) == heads


def test_text_opens_before_the_tower_and_the_tower_by_itself(tiny: Tiny) -> None:
    decoder = Decoder(ModelConfig.from_json(tiny.config), vision=VisionConfig.from_json(tiny.config))
    assembly = Assembly(decoder, {name: tensor.shape for name, tensor in tiny.tensors.items()})
    assert decoder.vision is not None
    seen = [name for name in tiny.tensors if name in assembly.vision]
    for name in tiny.tensors.keys() - set(seen):
        assembly.assign(name, tiny.tensors[name])
    assert all(gate.is_open for gate in decoder.gates() if gate is not decoder.vision.gate)
    assert not decoder.vision.gate.is_open
    with pytest.raises(ParameterMismatch, match="unfilled"):
        assembly.finish()
    for name in seen:
        assembly.assign(name, tiny.tensors[name])
    assert set(assembly.filled_by) >= {"embeddings.patch_embedding.weight", "post_layernorm.bias"}


def test_a_text_decoder_leaves_the_tower_alone(tiny: Tiny) -> None:
    decoder = Decoder(ModelConfig.from_json(tiny.config))
    assembly = Assembly(decoder, {name: tensor.shape for name, tensor in tiny.tensors.items()})
    assert set(assembly.ignored) == set(assembly.vision) != set()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"num_channels": 4}, "num_channels"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"image_size": 70}, "mm_tokens_per_image"),
        ({"patch_size": "14"}, "patch_size"),
        ({"layer_norm_eps": 0}, "layer_norm_eps"),
        ({"layer_norm_eps": None}, "layer_norm_eps"),
        ({"hidden_act": None}, "hidden_act"),
        ({"model_type": "clip_vision_model"}, "model_type"),
    ],
)
def test_a_tower_that_is_not_implemented_is_refused_by_name(tiny: Tiny, change: dict[str, object], named: str) -> None:
    config = tiny.config | {"vision_config": tiny.config["vision_config"] | change}
    with pytest.raises(UnsupportedConfig, match=named):
        VisionConfig.from_json(config)


def test_hub_style_configs_say_only_what_differs() -> None:
    """google/gemma-3-4b-it's config.json, as it lies on the hub."""
    tower = {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "num_attention_heads": 16}
    vision = VisionConfig.from_json(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "boi_token_index": 255999,
            "eoi_token_index": 256000,
            "image_token_index": 262144,
            "mm_tokens_per_image": 256,
            "text_config": {"hidden_size": 2560},
            "vision_config": tower | {"num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False},
        }
    )
    assert vision is not None
    assert (vision.patches_per_side, vision.tokens_per_side, vision.pool) == (64, 16, 4)


def test_text_models_have_no_tower() -> None:
    assert VisionConfig.from_json({"architectures": ["Gemma3ForCausalLM"]}) is None


def test_a_jpeg_is_resized_as_transformers_does_it() -> None:
    buffer = io.BytesIO()
    photo(5, 640, 333).save(buffer, "JPEG")
    image = Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
    ours = ImageProcessor(SIZE, SIZE).normalise(ImageProcessor(SIZE, SIZE).resize(image))
    torch.testing.assert_close(torch.from_numpy(ours), reference_pixels(image)[0], atol=1e-6, rtol=0)
