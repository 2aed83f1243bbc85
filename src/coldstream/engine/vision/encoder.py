"""Images of prompts: where they stand, and the thread on which the vision tower turns them into vectors.

The tower takes seconds on a CPU, and its weights land last. So it has a thread of its own: whoever asks about an image
waits for it there, outside of the schedule, and nobody else does. Vectors are kept by the image's content, so that the
same picture is looked at once, whoever sends it again.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from coldstream.engine.request import PromptImage, Request
from coldstream.errors import EngineError, InvalidRequest

if TYPE_CHECKING:
    from coldstream.engine.request import Pixels

Seen = Callable[[Exception | None], None]

_KEPT_BYTES = 64 * 1024 * 1024


class Sees(Protocol):
    """The vision tower, as the engine sees it; `model.vision.Sight` is one."""

    @property
    def tokens_per_image(self) -> int: ...

    @property
    def image_id(self) -> int:
        """The token that stands for a piece of an image in a prompt."""
        ...

    def encode(self, pixels: Pixels) -> Tensor:
        """uint8 `[height, width, 3]` -> float `[tokens_per_image, hidden]`; waits for the tower's weights."""
        ...


@dataclass(slots=True, eq=False)
class PlacedImage:
    """Tokens `start ... end - 1` of a sequence are an image, which all see one another; `vectors` once it was seen."""

    image: PromptImage
    vectors: Tensor | None = None

    @property
    def start(self) -> int:
        return self.image.start

    @property
    def end(self) -> int:
        return self.image.end


def check_images(request: Request, sees: Sees | None) -> None:
    """Refuse images that this model cannot take, or that are not where the prompt says.

    Raises:
        InvalidRequest: it names the prompt or the images.
    """
    if sees is None:
        if request.images:
            raise InvalidRequest("this model takes text only; leave the image out", field="images")
        return
    before = 0
    for image in request.images:
        fits = before <= image.start and image.end <= len(request.prompt_ids)
        tokens = set(request.prompt_ids[image.start : image.end])
        if not fits or image.end - image.start != sees.tokens_per_image or tokens != {sees.image_id}:
            raise InvalidRequest(
                f"an image at tokens {image.start} to {image.end} is not {sees.tokens_per_image} image tokens there",
                field="images",
            )
        before = image.end
    if request.prompt_ids.count(sees.image_id) != len(request.images) * sees.tokens_per_image:
        raise InvalidRequest("the prompt holds image tokens, but there is no image for them", field="prompt")


class ImageEncoder:
    """Looks at images, in order of arrival, on one thread. Safe to call from any thread."""

    def __init__(self, sees: Sees, *, threads: int, name: str) -> None:
        self._sees = sees
        self._threads = threads
        self._name = name
        self._work: queue.SimpleQueue[tuple[int, Sequence[PlacedImage], Seen] | None] = queue.SimpleQueue()
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self._round = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def look(self, images: Sequence[PlacedImage], seen: Seen) -> None:
        """Fill in the images' vectors, then call `seen(None)` on the encoder's thread, or `seen(error)`."""
        with self._lock:
            self._work.put((self._round, images, seen))
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._loop, name=f"coldstream-{self._name}-images", daemon=True)
                self._thread.start()

    def forget(self) -> None:
        """The weights were replaced: drop what was seen. Whoever waits is not called; look again."""
        with self._lock:
            self._round += 1
            self._kept.clear()

    def close(self) -> None:
        """Look at nothing more. An image that is being looked at is finished first; nobody waits for it."""
        with self._lock:
            self._closed = True
            self._work.put(None)

    def _loop(self) -> None:
        torch.set_num_threads(self._threads)
        while (work := self._work.get()) is not None and not self._closed:
            started, images, seen = work
            try:
                for placed in images:
                    self._look(placed, started)
                error: Exception | None = None
            except Exception as exc:  # the request must hear of it, whatever it is
                error = exc
            if started == self._round:
                seen(error)

    def _look(self, placed: PlacedImage, started: int) -> None:
        digest = placed.image.digest
        with self._lock:
            vectors = self._kept.get(digest) if started == self._round else None
            if vectors is not None:
                self._kept.move_to_end(digest)
        if vectors is None:
            vectors = self._sees.encode(placed.image.pixels)
            if not bool(torch.isfinite(vectors).all()):
                raise EngineError("the vision tower's result is not finite; load the model in bfloat16 or float32")
            self._keep(digest, vectors, started)
        placed.vectors = vectors

    def _keep(self, digest: bytes, vectors: Tensor, started: int) -> None:
        with self._lock:
            if started != self._round:
                return
            self._kept[digest] = vectors
            while len(self._kept) > 1 and sum(item.nbytes for item in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)
