"""OpenVINO GenAI behind an endpoint: its ContinuousBatchingPipeline, and its runtime for what that does not tell.

MODEL PORT SEQUENCES CONTEXT THREADS
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino
import openvino_genai

from coldstream.bench.peers.front import serve
from coldstream.bench.peers.likeliest import likeliest

_BLOCK = 32
"""Tokens of a block of its cache on a CPU."""
_PART = 512
"""Tokens of a step; a longer prompt comes in several."""


class OpenVino:
    """See `front.Peer`. `model` is a folder that optimum-intel exported."""

    def __init__(self, model: str, sequences: int, context: int, threads: str) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = sequences
        scheduler.max_num_batched_tokens = _PART
        scheduler.num_kv_blocks = sequences * -(-context // _BLOCK)
        scheduler.enable_prefix_caching = False
        self._model, self._properties = model, {"INFERENCE_NUM_THREADS": threads}
        self._tokenizer = openvino_genai.Tokenizer(model)
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", self._properties)
        self._handles: dict[int, Any] = {}
        self._runtime: Any = None

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer.encode(text).input_ids.data[0]]

    def spell(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))

    def begin(self, sequence: int, prompt: Sequence[int], tokens: int) -> None:
        wanted = openvino_genai.GenerationConfig(max_new_tokens=tokens, do_sample=False, ignore_eos=True)
        ids = openvino.Tensor(np.array([prompt], np.int64))
        self._handles[sequence] = self._pipeline.add_request(sequence, ids, wanted)

    def step(self) -> list[tuple[int, int]]:
        self._pipeline.step()
        made = []
        for sequence, handle in list(self._handles.items()):
            while handle.can_read():
                made += [(sequence, int(token)) for output in handle.read().values() for token in output.generated_ids]
            if handle.get_status() != openvino_genai.GenerationStatus.RUNNING:
                del self._handles[sequence]
        return made

    def best(self, prompt: Sequence[int], count: int) -> list[tuple[int, float]]:
        """By the runtime, on the same file with the same properties: the pipeline tells a drawn token's alone."""
        if self._runtime is None:
            compiled = openvino.Core().compile_model(f"{self._model}/openvino_model.xml", "CPU", self._properties)
            self._runtime = compiled.create_infer_request()
        self._runtime.reset_state()
        size = len(prompt)
        inputs = {
            "input_ids": np.array([prompt], np.int64),
            "attention_mask": np.ones((1, size), np.int64),
            "position_ids": np.arange(size, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        known = {name for port in self._runtime.model_inputs for name in port.names}
        got = self._runtime.infer({name: value for name, value in inputs.items() if name in known})
        return likeliest(next(iter(got.values()))[0, -1], count)


if __name__ == "__main__":
    model, port, sequences, context, threads = sys.argv[1:]
    serve(OpenVino(model, int(sequences), int(context), threads), int(port))
