"""Images of prompts: where they stand, and the thread on which the vision tower turns them into vectors.

The tower takes seconds on a CPU, and its weights land last. So it has a thread of its own: a request with an image
waits for it there, outside of the schedule, and no other does. Vectors are kept by the image's content, so that the
same picture is looked at once, however often it is sent with the same salt.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from coldstream.backends.protocol import Vectors, VisionEncoder
from coldstream.engine.request import PromptImage, Request
from coldstream.errors import InvalidRequest

Seen = Callable[[Exception | None], None]

_KEPT_BYTES = 64 * 1024 * 1024


@dataclass(slots=True, eq=False)
class PlacedImage:
    """Tokens `start ... end - 1` of a sequence are an image, which all see one another; `vectors` once it was seen."""

    image: PromptImage
    salt: bytes = b""
    vectors: Vectors | None = None

    @property
    def start(self) -> int:
        return self.image.start

    @property
    def end(self) -> int:
        return self.image.end


def check_images(request: Request, vision: VisionEncoder | None) -> None:
    """Refuse images that this model cannot take, or that are not where the prompt says.

    Raises:
        InvalidRequest: it names the prompt or the images.
    """
    if vision is None:
        if request.images:
            raise InvalidRequest("this model takes text only; leave the image out", field="images")
        return
    before = 0
    for image in request.images:
        fits = before <= image.start and image.end <= len(request.prompt_ids)
        tokens = set(request.prompt_ids[image.start : image.end])
        if not fits or image.end - image.start != vision.tokens_per_image or tokens != {vision.image_id}:
            raise InvalidRequest(
                f"an image at tokens {image.start} to {image.end} is not {vision.tokens_per_image} image tokens there",
                field="images",
            )
        before = image.end
    if request.prompt_ids.count(vision.image_id) != len(request.images) * vision.tokens_per_image:
        raise InvalidRequest("the prompt holds image tokens, but there is no image for them", field="prompt")


class ImageEncoder:
    """Looks at images, in order of arrival, on one thread. Safe to call from any thread.

    `thread` is the backend's: what that thread runs within.
    """

    def __init__(
        self, vision: VisionEncoder, *, thread: Callable[[], AbstractContextManager[object]], name: str
    ) -> None:
        self._vision = vision
        self._within = thread
        self._name = name
        self._work: queue.SimpleQueue[tuple[int, Sequence[PlacedImage], Seen] | None] = queue.SimpleQueue()
        self._kept: OrderedDict[bytes, Vectors] = OrderedDict()
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
        """The weights were replaced: drop what was seen. Waiting requests are not called; look again."""
        with self._lock:
            self._round += 1
            self._kept.clear()

    def close(self) -> None:
        """Look at nothing more. An image that is being looked at is finished first, and not waited for."""
        with self._lock:
            self._closed = True
            self._work.put(None)

    def _loop(self) -> None:
        with self._within():
            while (work := self._work.get()) is not None and not self._closed:
                self._look_at_all(*work)

    def _look_at_all(self, started: int, images: Sequence[PlacedImage], seen: Seen) -> None:
        error: Exception | None = None
        try:
            for placed in images:
                self._look(placed, started)
        except Exception as exc:  # the request must hear of it, whatever it is
            error = exc
        if started == self._round:
            seen(error)

    def _look(self, placed: PlacedImage, started: int) -> None:
        digest = placed.salt + placed.image.digest
        with self._lock:
            vectors = self._kept.get(digest) if started == self._round else None
            if vectors is not None:
                self._kept.move_to_end(digest)
        if vectors is None:
            vectors = self._vision.encode(placed.image.pixels)
            self._keep(digest, vectors, started)
        placed.vectors = vectors

    def _keep(self, digest: bytes, vectors: Vectors, started: int) -> None:
        with self._lock:
            if started != self._round:
                return
            self._kept[digest] = vectors
            while len(self._kept) > 1 and sum(item.nbytes for item in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)
