"""What a step must move and multiply, and the least time in which a card can: computed, never measured.

A decode step reads every matrix once, whatever the batch, and the live keys and values of each sequence; a prefill
multiplies every matrix with every token. Launches of a layer are those of `backends.torch.fused`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from coldstream.bench.random_weights import GemmaShape

LAUNCHES_A_LAYER = 9
"""Four matrix products, and five kernels between them."""
LAUNCHES_BESIDE_A_RECORDING = 4
"""Of a decode step that is played back: its ids and the next step's tables to the device, what was drawn from there."""


@dataclass(frozen=True, slots=True)
class Peak:
    """NVIDIA's figures of a card: bytes a second of its memory, and dense bfloat16 operations a second."""

    title: str
    bandwidth: float
    bf16: float


PEAKS: Mapping[str, Peak] = MappingProxyType(
    {
        "L4": Peak("NVIDIA L4", 300e9, 121e12),
        "RTX PRO 6000": Peak("NVIDIA RTX PRO 6000", 1597e9, 500e12),
        "H200": Peak("NVIDIA H200", 4800e9, 989e12),
    }
)


def peak_of(device_name: str) -> Peak | None:
    """The card of a name that the driver gives; None for one that is not in the table."""
    words = device_name.upper().replace("-", " ").split()
    return next((peak for key, peak in PEAKS.items() if set(key.split()) <= set(words)), None)


@dataclass(frozen=True, slots=True)
class Work:
    """What one step of a shape does. Bytes and operations; `item` bytes a weight, keys and values in two each."""

    shape: GemmaShape
    item: int = 2

    @property
    def matrix_elements(self) -> int:
        """Of all matrices that a token is multiplied with, the head among them."""
        shape = self.shape
        heads, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        layer = shape.hidden * (2 * heads + 2 * keys) + 3 * shape.hidden * shape.intermediate
        return layer * shape.layers + shape.vocab * shape.hidden

    def live_bytes(self, context: int) -> int:
        """Keys and values that one sequence of so many tokens reads in a step."""
        shape = self.shape
        full = shape.layers // 6
        tokens = full * context + (shape.layers - full) * min(context, shape.window)
        return 2 * 2 * shape.kv_heads * shape.head_dim * tokens

    def decode_bytes(self, rows: int, context: int) -> int:
        """Of a decode step of `rows` sequences, each `context` tokens long."""
        return self.matrix_elements * self.item + rows * self.live_bytes(context)

    @property
    def launches(self) -> int:
        """Of a step's layers."""
        return self.shape.layers * LAUNCHES_A_LAYER


@dataclass(frozen=True, slots=True)
class Floor:
    """The least time in which a card does a work: its bytes or its operations, whichever take longer."""

    work: Work
    peak: Peak

    def decode_seconds(self, rows: int, context: int) -> float:
        """Of a decode step of `rows` sequences, each `context` tokens long."""
        multiplied = 2.0 * rows * self.work.matrix_elements / self.peak.bf16
        return max(self.work.decode_bytes(rows, context) / self.peak.bandwidth, multiplied)

    def prefill_seconds(self, tokens: int) -> float:
        """Of reading a prompt; only its last token goes through the head."""
        work = self.work
        body = work.matrix_elements - work.shape.vocab * work.shape.hidden
        return max(2.0 * tokens * body / self.peak.bf16, work.matrix_elements * work.item / self.peak.bandwidth)


def plan(shapes: Mapping[str, GemmaShape], *, context: int = 1024) -> Iterator[str]:
    """The lines of `--plan`."""
    yield f"computed from shapes and NVIDIA's figures, nothing of it was measured; {context} tokens a sequence"
    yield (
        "launches are those of the layers, in a step that is computed; embedding, angles, head and drawing are more; a "
        f"decode step that was recorded is one graph and at most {LAUNCHES_BESIDE_A_RECORDING} launches and copies"
    )
    for name, shape in shapes.items():
        for item, precision in ((2, "bfloat16"), (1, "int8")):
            work = Work(shape, item)
            moved = ", ".join(f"{work.decode_bytes(rows, context) / 1e9:.2f}" for rows in (1, 8, 32, 64))
            yield f"{name} {precision}: {work.launches} launches in layers; GB a decode step at 1, 8, 32, 64: {moved}"
            for peak in PEAKS.values():
                floor = Floor(work, peak)
                rates = ", ".join(f"{rows / floor.decode_seconds(rows, context):.0f}" for rows in (1, 8, 32, 64))
                prefill = 2048 / floor.prefill_seconds(2048)
                yield f"  {peak.title:22} at most {rates} tokens/s at 1, 8, 32, 64; prefill at most {prefill:.0f}"
