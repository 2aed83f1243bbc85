"""The seam between the engine and what computes: a backend has arrays, samplers and attention, the engine has none.

    backend.allocate(groups, block_size)
    with backend.thread():                      # on the thread that computes
        backend.launch(batch, is_wanted)        # queued, or computed at once
        outcomes = backend.collect(rows)        # the one wait of a step

`TakesTensors` is its other face, while the model is loaded. No array library is imported here, and none is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from coldstream.errors import ColdstreamError

if TYPE_CHECKING:
    from coldstream.model.image_processor import Pixels


# -- blocks of keys and values -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Group:
    """`count` blocks for the layers of one window; None: full attention."""

    window: int | None
    count: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy block `source` to `target` in a group before anything is computed."""

    group: int
    source: int
    target: int


class BlockTable(Protocol):
    """The blocks of one sequence in a group: `blocks[i]` holds the tokens of place `first + i`, the earlier are gone.

    `together`: each lies right behind the one before it.
    """

    @property
    def first(self) -> int: ...
    @property
    def blocks(self) -> Sequence[int]: ...
    @property
    def together(self) -> bool: ...


# -- what a step computes ----------------------------------------------------------------------------------------------


class Vectors(Protocol):
    """What a vision tower made of an image; only the backend knows what is in it."""

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, slots=True, eq=False)
class ImageRun:
    """Tokens `start ... end - 1` of a sequence are an image, with `vectors` for embeddings; they see one another."""

    start: int
    end: int
    vectors: Vectors


@dataclass(frozen=True, slots=True)
class Scoring:
    """The token that follows each of the first `len(targets)` tokens of a run; `top` best alternatives are wanted."""

    targets: Sequence[int]
    top: int


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Consecutive tokens of one sequence, the first at position `start`, and the sequence's blocks in each group.

    `images` are those that overlap it; none goes on behind its end. With `draws` a token may be drawn after its last.
    """

    token_ids: Sequence[int]
    start: int
    tables: Sequence[BlockTable]
    images: Sequence[ImageRun] = ()
    draws: bool = False
    scoring: Scoring | None = None

    @property
    def end(self) -> int:
        """One past the position of its last token."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """What is computed together. `copies` are made first; all sources are read before a target is written."""

    runs: Sequence[TokenRun]
    copies: Sequence[Copy] = ()


class Abandoned(Exception):
    """The step was given up: everybody whose it was has left. Nothing of it counts. No error."""


# -- what is drawn -----------------------------------------------------------------------------------------------------


class Sampling(Protocol):
    """How tokens are drawn; `engine.request.SamplingParams` says what each means."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def min_p(self) -> float: ...
    @property
    def repetition_penalty(self) -> float: ...
    @property
    def presence_penalty(self) -> float: ...
    @property
    def frequency_penalty(self) -> float: ...
    @property
    def logprobs(self) -> int | None: ...
    @property
    def logit_bias(self) -> tuple[tuple[int, float], ...]: ...


@dataclass(slots=True, eq=False)
class SamplingRow:
    """One sequence's state as a sampler needs it; the engine changes it between steps.

    `position` counts the tokens drawn so far, `counts` each of them. `allowed` is what a grammar lets come next: bit
    `i % 8` of byte `i // 8` is token i's, and a token behind its end may not come. `kept` is the backend's own.
    """

    params: Sampling
    seed: int
    prompt_ids: Sequence[int]
    position: int = 0
    counts: dict[int, int] = field(default_factory=dict)
    allowed: bytes | None = None
    kept: object = None

    @property
    def is_greedy(self) -> bool:
        """Nothing but the best token, of unchanged logits, and no logprobs."""
        return self.params.temperature <= 0 and not self.changes_logits and self.params.logprobs is None

    @property
    def changes_logits(self) -> bool:
        """Some penalty, bias or grammar is at work."""
        params = self.params
        return bool(
            params.repetition_penalty != 1.0
            or params.presence_penalty
            or params.frequency_penalty
            or params.logit_bias
            or self.allowed is not None
        )

    def drawn(self, token_id: int) -> None:
        """Take note of the token that was drawn."""
        self.position += 1
        self.counts[token_id] = self.counts.get(token_id, 0) + 1


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token's log probability (nats) under the unchanged logits, and the best alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token of one row; `logprob` where the row asked for it."""

    token_id: int
    logprob: Logprob | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run: the token that was drawn, or why there is none; the scores that it asked for."""

    sampled: Sampled | ColdstreamError | None = None
    scored: Sequence[Logprob] = ()


# -- the backend -------------------------------------------------------------------------------------------------------


class VisionEncoder(Protocol):
    """A vision tower with its weights, or without them yet."""

    @property
    def tokens_per_image(self) -> int: ...

    @property
    def image_id(self) -> int:
        """The token that stands for a piece of an image in a prompt."""
        ...

    def encode(self, pixels: Pixels) -> Vectors:
        """uint8 `[height, width, 3]` -> `tokens_per_image` vectors; waits for the tower's weights. On a `thread()`.

        Raises:
            EngineError: the result is not finite.
            OutOfMemory: the device has not enough.
        """
        ...


class Backend(Protocol):
    """A model on a device, with its keys and values. `launch` and `collect` alternate, on one thread.

    What a sequence gets does not depend on who else is in its steps, nor on how its tokens are cut into runs, but for
    rounding where the backend's numbers round.
    """

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The distinct attention windows of the model's layers, each a group of blocks; None: full attention."""
        ...

    @property
    def reads_anywhere(self) -> bool:
        """Whether attention reads a sequence's blocks wherever they lie, and gains nothing where they lie together."""
        ...

    @property
    def vision(self) -> VisionEncoder | None:
        """None where the model takes text only."""
        ...

    def block_bytes(self, block_size: int) -> tuple[int, ...]:
        """Memory of one block of so many tokens in each group."""
        ...

    def cache_bytes(self, *, step_tokens: int, rows: int) -> int:
        """Bytes that keys and values may take where the settings do not say how many.

        The most tokens of a step are `step_tokens`, and `rows` the most that draw.

        Raises:
            OutOfMemory: there is no room beside the weights.
        """
        ...

    def allocate(self, groups: Sequence[Group], block_size: int) -> None:
        """Make the blocks, one group for each of `windows`. Once, before the first `launch`.

        Raises:
            OutOfMemory: the device has not enough.
        """
        ...

    def thread(self) -> AbstractContextManager[object]:
        """Within it the calling thread may compute."""
        ...

    def launch(self, batch: StepBatch, is_wanted: Callable[[], bool]) -> None:
        """Begin a step; what the batch names is read before this returns. Weights that have not landed are waited for.

        `is_wanted` is asked before each layer, from whatever thread; where it says no, the step may be given up.

        Raises:
            Abandoned: it was.
            OutOfMemory: the device has not enough; and whatever else the device fails with.
        """
        ...

    def collect(self, rows: Sequence[SamplingRow | None]) -> Sequence[Outcome]:
        """Wait for the step and draw: an outcome for each run of its batch, in its order.

        `rows` has one for each run that a token is drawn for, and None for the others. A step that nothing is wanted
        of need not be waited for.

        Raises:
            Abandoned, OutOfMemory: as `launch`.
        """
        ...


class TakesTensors(Protocol):
    """A backend while its model is loaded. Tensors come in any order, a later one of a name replaces the earlier."""

    def assign(self, name: str, tensor: Any) -> None:
        """Take a tensor of the checkpoint as it lands; what waits for it goes on when its layer is whole.

        Raises:
            ParameterMismatch: the model has no place for it, or its shape is wrong.
        """
        ...

    def settle(self) -> None:
        """Return when what was taken so far is where steps read it."""
        ...

    def finish(self) -> None:
        """Everything was given.

        Raises:
            ParameterMismatch: something is missing; it is named.
        """
        ...

    def fail(self, error: BaseException) -> None:
        """Let what waits for tensors end with the error."""
        ...
