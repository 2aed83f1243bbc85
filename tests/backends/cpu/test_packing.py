"""int8 matrices packed before torch is there: what the assembly would have packed, bit by bit, whatever comes when."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coldstream.backends.cpu.choice import stand_up
from coldstream.backends.cpu.decoder import CpuDecoder
from coldstream.backends.cpu.packing import Packing
from coldstream.errors import ParameterMismatch
from coldstream.model.config import ModelConfig
from coldstream.weights.arrays import as_array
from coldstream.weights.checkpoint.header import TensorInfo
from coldstream.weights.transfer.stream import Landed
from tests.backends.cpu.test_int8 import WIDE, filled
from tests.support import tiny
from tests.support.cpu_models import one_step

PROMPTS = [[4, 8, 15], [16, 23, 42, 7]]
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


def landed(tensors: dict[str, Tensor]) -> dict[str, Landed]:
    """As they would come out of one file."""
    found, start = {}, 0
    for name, tensor in tensors.items():
        info = TensorInfo(
            name, DTYPES[tensor.dtype], tuple(tensor.shape), "model.safetensors", start, start + tensor.nbytes
        )
        found[name] = Landed(info, memoryview(tensor.contiguous().view(torch.uint8).numpy().tobytes()))
        start += tensor.nbytes
    return found


def in_pieces(packing: Packing, whole: Landed) -> list[Landed]:
    base = whole.info.start
    return [Landed(info, whole.data[info.start - base : info.end - base]) for info in packing.pieces(whole.info)]


def begun(config: dict[str, object], tensors: dict[str, Landed], *, workers: int = 0) -> Packing:
    def failed(exc: BaseException) -> None:
        raise exc

    infos = [item.info for item in tensors.values()]
    return Packing(ModelConfig.from_json(config), infos, workers=workers, failed=failed)


def standing(made: tiny.Tiny, packing: Packing, others: list[Landed]) -> CpuDecoder:
    shapes = {name: tensor.shape for name, tensor in made.tensors.items()}
    decoder, assembly = stand_up(made.config, shapes, precision="int8", packing=packing)
    for item in others:
        assembly.assign(item.info.name, as_array(item))
    assembly.finish()
    return decoder


@pytest.fixture(scope="module", params=["gemma3", "qwen2"])
def made(request: pytest.FixtureRequest) -> tiny.Tiny:
    return tiny.gemma3(**WIDE) if request.param == "gemma3" else tiny.qwen2()


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_the_decoder_is_the_one_that_the_assembly_would_have_filled(made: tiny.Tiny, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    workers = data.draw(st.sampled_from([0, 2]))
    tensors = {name: tensor.to(dtype) for name, tensor in made.tensors.items()}
    whole = landed(tensors)
    packing = begun(made.config, whole, workers=workers)
    pieces = [piece for item in whole.values() for piece in in_pieces(packing, item)]
    again = data.draw(st.lists(st.sampled_from(pieces), max_size=3))
    for piece in again:
        packing.take(Landed(piece.info, memoryview(bytes(len(piece.data)))))
    order = data.draw(st.permutations(pieces))
    others = [piece for piece in order if not packing.take(piece)]
    assert {item.info.name for item in others} == {name for name, tensor in tensors.items() if tensor.ndim == 1}, (
        "every matrix is packed, and nothing else"
    )
    expected = filled(replace(made, tensors=tensors))
    assert torch.equal(one_step(standing(made, packing, others), PROMPTS), one_step(expected, PROMPTS))


def test_the_decoder_may_stand_before_between_and_after_its_matrices(made: tiny.Tiny) -> None:
    whole = landed(made.tensors)
    packing = begun(made.config, whole, workers=2)
    matrices = [item for item in whole.values() if len(item.info.shape) == 2]
    for item in matrices[: len(matrices) // 2]:
        packing.take(item)
    shapes = {name: tensor.shape for name, tensor in made.tensors.items()}
    decoder, assembly = stand_up(made.config, shapes, precision="int8", packing=packing)
    for item in matrices[len(matrices) // 2 :]:
        packing.take(item)
    for item in whole.values():
        if len(item.info.shape) == 1:
            assembly.assign(item.info.name, as_array(item))
    assembly.finish()
    assert torch.equal(one_step(decoder, PROMPTS), one_step(filled(made), PROMPTS))
    assert set(assembly.filled_by.values()) == set(made.tensors)


def test_large_matrices_come_in_pieces_of_whole_groups_of_rows() -> None:
    made = tiny.gemma3(vocab_size=70_000, **WIDE)
    whole = landed(made.tensors)
    packing = begun(made.config, whole)
    table = next(item for name, item in whole.items() if "embed_tokens" in name)
    pieces = packing.pieces(table.info)
    assert len(pieces) > 5
    assert all(piece.shape[0] % 16 == 0 for piece in pieces[:-1])
    assert max(piece.nbytes for piece in pieces) <= 4 * 1024 * 1024
    assert [piece.start for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]
    assert (pieces[0].start, pieces[-1].end) == (table.info.start, table.info.end)


@pytest.mark.parametrize("what", ["shape", "dtype"])
def test_what_does_not_fit_is_left_to_whoever_complains_about_it(what: str) -> None:
    made = tiny.gemma3(**WIDE)
    name = next(name for name in made.tensors if "up_proj" in name)
    odd = made.tensors[name][:-1] if what == "shape" else made.tensors[name].double()
    whole = landed(made.tensors | {name: odd.clone()})
    packing = begun(made.config, whole)
    assert packing.pieces(whole[name].info) == (whole[name].info,)
    assert not packing.take(whole[name])
    if what == "shape":
        shapes = {key: item.info.shape for key, item in whole.items()}
        with pytest.raises(ParameterMismatch, match="up_proj"):
            stand_up(made.config, shapes, precision="int8", packing=packing)
        return
    others = [item for item in whole.values() if not packing.take(item)]
    decoder = standing(made, packing, others)
    assert torch.equal(one_step(decoder, PROMPTS), one_step(filled(made), PROMPTS))


def test_a_checkpoint_without_all_its_matrices_is_not_whole() -> None:
    made = tiny.gemma3(**WIDE)
    whole = landed(made.tensors)
    packing = begun(made.config, whole)
    missing = next(name for name in made.tensors if "down_proj" in name)
    others = [item for name, item in whole.items() if name != missing and not packing.take(item)]
    with pytest.raises(ParameterMismatch, match=r"unfilled.*down_proj"):
        standing(made, packing, others)


def test_packing_needs_no_torch_and_torch_then_finds_its_own_openmp() -> None:
    code = """
import sys
from coldstream.model.config import ModelConfig
from coldstream.backends.cpu.packed import PackedMatrix
from coldstream.backends.cpu.packing import Packing
from coldstream.weights.checkpoint.header import TensorInfo
from coldstream.weights.transfer.stream import Landed
import json
config = ModelConfig.from_json(json.loads(sys.argv[1]))
info = TensorInfo("model.layers.0.mlp.down_proj.weight", "F32", (config.hidden_size, config.intermediate_size),
                  "f", 0, 4 * config.hidden_size * config.intermediate_size)
packing = Packing(config, [info], workers=0, failed=print)
assert packing.take(Landed(info, memoryview(bytes(info.nbytes))))
assert "torch" not in sys.modules
import torch
torch.ones(300, 300) @ torch.ones(300, 300)
maps = {line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line}
print(len(maps), all("torch" in path for path in maps))
"""
    config = json.dumps(tiny.gemma3(**WIDE).config, default=str)
    done = subprocess.run([sys.executable, "-c", code, config], capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["1", "True"], "")


def test_bytes_that_lie_anywhere_are_packed_alike() -> None:
    """A shard's header may leave them at an odd address."""
    made = tiny.gemma3(**WIDE)
    whole = landed({name: tensor.bfloat16() for name, tensor in made.tensors.items()})
    shifted = {}
    for name, item in whole.items():
        memory = bytearray(len(item.data) + 1)
        memory[1:] = item.data
        shifted[name] = Landed(item.info, memoryview(memory)[1:].toreadonly())
    decoders = []
    for items in (whole, shifted):
        packing = begun(made.config, items)
        decoders.append(standing(made, packing, [item for item in items.values() if not packing.take(item)]))
    assert torch.equal(*(one_step(decoder, PROMPTS) for decoder in decoders))
    assert math.isfinite(float(one_step(decoders[0], PROMPTS).sum()))
