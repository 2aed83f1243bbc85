"""ik_llama.cpp behind an endpoint: ik-llama-cpp-python has its library, and no server that batches.

MODEL PORT SEQUENCES CONTEXT THREADS
"""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ik_llama_cpp import _ctypes_api as api

from coldstream.bench.peers.front import serve
from coldstream.bench.peers.likeliest import likeliest

_PART = 2048
"""Tokens of a step at most."""


@dataclass(slots=True)
class _Row:
    """A sequence in a slot of the cache: what comes next into it, and how many tokens are still to be made."""

    number: int
    slot: int
    next: list[int]
    left: int
    seen: int = 0


class IkLlama:
    """See `front.Peer`. `model` is a .gguf file, whose tensors are repacked for this processor as they are read."""

    def __init__(self, model: str, sequences: int, context: int, threads: int) -> None:
        api.llama_backend_init()
        how = api.llama_model_default_params()
        how.repack_tensors = True
        self._model = api.llama_model_load_from_file(model.encode(), how)
        if not self._model:
            raise SystemExit(f"{model}: llama_model_load_from_file gave nothing")
        wanted = api.llama_context_default_params()
        wanted.n_ctx, wanted.n_seq_max = context * (sequences + 1), sequences + 1
        wanted.n_batch, wanted.n_ubatch = _PART, 512
        wanted.n_threads = wanted.n_threads_batch = threads
        # With it, several sequences of Gemma 3 in a step end in an assertion of iqk_fa_templates.h (S > 0).
        wanted.flash_attn = False
        self._context = api.llama_init_from_model(self._model, wanted)
        if not self._context:
            raise SystemExit(f"{model}: llama_init_from_model gave nothing")
        self._size = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model)))
        self._batch = api.llama_batch_init(_PART, 0, 1)
        # Not among the package's own declarations.
        self._remove = api._lib.llama_kv_cache_seq_rm
        self._remove.argtypes = (ctypes.c_void_p, api.llama_seq_id, api.llama_pos, api.llama_pos)
        self._free = list(range(1, sequences + 1))
        self._waiting: deque[tuple[int, Sequence[int], int]] = deque()
        self._rows: list[_Row] = []

    def encode(self, text: str) -> list[int]:
        raw = text.encode()
        ids = (api.llama_token * (len(raw) + 8))()
        count = api.llama_tokenize(self._model, raw, len(raw), ids, len(ids), True, False)
        return list(ids[:count])

    def spell(self, token: int) -> str:
        piece = ctypes.create_string_buffer(256)
        count = api.llama_token_to_piece(self._model, token, piece, len(piece), 0, True)
        return piece.raw[: max(count, 0)].decode(errors="replace")

    def begin(self, sequence: int, prompt: Sequence[int], tokens: int) -> None:
        self._waiting.append((sequence, prompt, tokens))

    def step(self) -> list[tuple[int, int]]:
        room = _PART - sum(len(row.next) for row in self._rows)
        while self._waiting and self._free and len(self._waiting[0][1]) <= room:
            number, prompt, tokens = self._waiting.popleft()
            self._rows.append(_Row(number, self._free.pop(), list(prompt), tokens))
            room -= len(prompt)
        if not self._rows:
            raise SystemExit(f"a prompt has more than the {_PART} tokens of a step")
        made = []
        for row, logits in zip(self._rows, self._decode(self._rows), strict=True):
            token = int(logits.argmax())
            made.append((row.number, token))
            row.next, row.left = [token], row.left - 1
            if not row.left:
                self._clear(row.slot)
                self._free.append(row.slot)
        self._rows = [row for row in self._rows if row.left]
        return made

    def best(self, prompt: Sequence[int], count: int) -> list[tuple[int, float]]:
        (logits,) = self._decode([_Row(0, 0, list(prompt), 1)])
        best = likeliest(logits, count)
        self._clear(0)
        return best

    def _decode(self, rows: Sequence[_Row]) -> list[Any]:
        """The logits behind each row's last token, float32 `[vocab]`; good until the next call."""
        batch, at, ends = self._batch, 0, []
        for row in rows:
            for token in row.next:
                batch.token[at], batch.pos[at], batch.logits[at] = token, row.seen, 0
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, row.slot
                at, row.seen = at + 1, row.seen + 1
            ends.append(at - 1)
            batch.logits[at - 1] = 1
        batch.n_tokens = at
        if code := api.llama_decode(self._context, batch):
            raise SystemExit(f"llama_decode: {code}")
        return [np.ctypeslib.as_array(api.llama_get_logits_ith(self._context, end), (self._size,)) for end in ends]

    def _clear(self, slot: int) -> None:
        self._remove(self._context, slot, -1, -1)


if __name__ == "__main__":
    model, port, *sizes = sys.argv[1:]
    serve(IkLlama(model, *map(int, sizes)), int(port))
