"""Where images stand in prompts that vLLM expands itself: a marker in the text stays, and the picture goes along.

The native `ImagePrompt` writes out a run of image tokens, which it knows for Gemma 3; vLLM's processors know it for
their models, and want the marker alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from coldstream.engine.request import PromptImage
from coldstream.engine.tokenizer.control_tokens import bare
from coldstream.engine.tokenizer.tokenizer import Tokenizer
from coldstream.errors import InvalidRequest, TokenizerError
from coldstream.model.image_processor import WholePictures

if TYPE_CHECKING:
    from coldstream.engine.vision.prompt import Pictured


class MarkedImages:
    """`marker` is vLLM's placeholder of its model for an image, which the chat template writes as well."""

    def __init__(self, marker: str, tokenizer: Tokenizer) -> None:
        self.marker = marker
        self.processor = WholePictures()
        self._ids = tokenizer.encode(marker, add_special_tokens=False)

    def expand(self, text: str, images: int) -> str:
        """The text as it is.

        Raises:
            InvalidRequest: there are more or fewer markers than images: a text has one in it.
        """
        found = bare(text).count(self.marker)
        if found != images:
            raise InvalidRequest(
                f"the prompt has {found} of {self.marker} for {images} images; it marks images and cannot be part of a "
                "text",
                field="prompt",
            )
        return text

    def place(self, ids: Sequence[int], pictures: Sequence[Pictured]) -> tuple[PromptImage, ...]:
        """Say where each picture's marker is in an encoded prompt.

        Raises:
            TokenizerError: the markers are not there as tokens; the tokenizer does not know them as it should.
        """
        size = len(self._ids)
        starts = [place for place in range(len(ids) - size + 1) if list(ids[place : place + size]) == self._ids]
        if len(starts) != len(pictures):
            raise TokenizerError(
                f"the tokenizer made {len(starts)} image markers of {len(pictures)} images; {self.marker} must be made "
                "of special tokens of its own"
            )
        return tuple(
            PromptImage(start, start + size, picture.pixels, picture.digest)
            for start, picture in zip(starts, pictures, strict=True)
        )
