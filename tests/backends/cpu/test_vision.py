"""The CPU's SigLIP tower and projector agree with transformers, in float32 and nearly so in int8."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from coldstream.backends.cpu.decoder import CpuPrecision
from coldstream.backends.cpu.vision import CpuSight
from coldstream.errors import EngineError
from coldstream.model.image_processor import ImageProcessor
from tests.support.cpu_models import filled_cpu_decoder
from tests.support.tiny import Tiny
from tests.support.tiny_vision import SIZE, TOKENS, file_names, gemma3_vision, photo


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return gemma3_vision()


@pytest.mark.parametrize("version", ["4.51", "5.23", "raw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_agree_on_every_key_layout(tiny: Tiny, version: str, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in file_names(tiny.tensors, version).items()}
    decoder = filled_cpu_decoder(tiny.config, tensors)
    assert decoder.vision is not None
    processor = ImageProcessor.from_files({}, image_size=SIZE)
    theirs = transformers.Gemma3ImageProcessor(size={"height": SIZE, "width": SIZE}, resample=2)
    pixels = theirs(images=[photo(1)], return_tensors="pt")["pixel_values"]
    expected = tiny.model.get_image_features(pixels).pooler_output[0].detach()
    ours = torch.from_numpy(CpuSight(decoder.vision, processor).encode(processor.resize(photo(1))))
    assert ours.shape == (TOKENS, tiny.config["text_config"]["hidden_size"])
    if dtype is torch.float32:
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    else:
        assert torch.cosine_similarity(ours.flatten(), expected.flatten(), dim=0) > 0.999


@pytest.mark.parametrize(("precision", "likeness"), [("float32", 1 - 1e-9), ("int8", 0.99)])
def test_patches_beyond_one_part_of_queries_are_attended_alike(precision: CpuPrecision, likeness: float) -> None:
    """32 x 32 patches: two parts of 512 queries."""
    tiny = gemma3_vision(image_size=64, patch_size=2)
    pixels = ImageProcessor(64, 64).normalise(ImageProcessor(64, 64).resize(photo(2)))
    expected = tiny.model.get_image_features(torch.from_numpy(pixels)[None]).pooler_output[0].detach()
    tower = filled_cpu_decoder(tiny.config, tiny.tensors, precision).vision
    assert tower is not None
    ours = torch.from_numpy(tower.encode(pixels))
    assert torch.cosine_similarity(ours.flatten().double(), expected.flatten().double(), dim=0) > likeness


def test_a_result_that_is_not_finite_is_an_error(tiny: Tiny) -> None:
    name = "multi_modal_projector.mm_input_projection_weight"
    tensors = file_names(tiny.tensors, "5.23")
    tensors[name] = torch.full_like(tensors[name], np.nan)
    tower = filled_cpu_decoder(tiny.config, tensors).vision
    assert tower is not None
    processor = ImageProcessor(SIZE, SIZE)
    with pytest.raises(EngineError, match="not finite"):
        CpuSight(tower, processor).encode(processor.resize(photo(2)))
