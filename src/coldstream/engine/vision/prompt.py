"""Where images stand in a prompt: markers in the text become runs of image tokens, as Gemma 3's processor writes them.

A chat template writes `<start_of_image>` for each image. In its place comes an empty line, that marker, one image token
for each vector, `<end_of_image>` and an empty line. The pictures are then put where those runs are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from coldstream.engine.request import PromptImage
from coldstream.engine.tokenizer.control_tokens import bare, replaced
from coldstream.engine.tokenizer.tokenizer import Tokenizer
from coldstream.errors import InvalidRequest, TokenizerError

if TYPE_CHECKING:
    from coldstream.model.image_processor import ImageProcessor, Pixels


class ImageTokens(Protocol):
    """The ids that mark an image; `model.vision_config.VisionConfig` has them."""

    @property
    def tokens_per_image(self) -> int: ...
    @property
    def begin_id(self) -> int: ...
    @property
    def image_id(self) -> int: ...
    @property
    def end_id(self) -> int: ...


class Pictured(Protocol):
    """A picture that is ready for the model."""

    @property
    def pixels(self) -> Pixels: ...
    @property
    def digest(self) -> bytes: ...


class ImagePrompt:
    """The image tokens of one model's tokenizer; `marker` is the text that stands for an image before `expand`.

    `processor` makes pixels of a picture as this model takes them.
    """

    def __init__(self, tokens: ImageTokens, tokenizer: Tokenizer, processor: ImageProcessor) -> None:
        self._tokens = tokens
        self.processor = processor
        self.marker = _text(tokenizer, tokens.begin_id)
        self._piece = _text(tokenizer, tokens.image_id)
        run = self._piece * tokens.tokens_per_image
        self._whole = f"\n\n{self.marker}{run}{_text(tokenizer, tokens.end_id)}\n\n"

    @property
    def tokens_per_image(self) -> int:
        """How much of the context an image takes, but for its frame."""
        return self._tokens.tokens_per_image

    def expand(self, text: str, images: int) -> str:
        """Put a run of image tokens in place of each marker.

        Raises:
            InvalidRequest: there are more or fewer markers than images: one was written into a text.
        """
        written = bare(text)
        found = written.count(self.marker)
        if found != images or self._piece in written:
            raise InvalidRequest(
                f"the prompt has {found} of {self.marker} for {images} images; {self.marker} and {self._piece} "
                "mark images and cannot be part of a text",
                field="prompt",
            )
        return replaced(text, self.marker, self._whole)

    def place(self, ids: Sequence[int], pictures: Sequence[Pictured]) -> tuple[PromptImage, ...]:
        """Say which tokens of an expanded and encoded prompt are which picture's.

        Raises:
            TokenizerError: the runs are not there; the tokenizer does not know the image tokens as it should.
        """
        size = self._tokens.tokens_per_image
        starts: list[int] = []
        for place, token in enumerate(ids):
            if token == self._tokens.image_id and (not starts or place >= starts[-1] + size):
                starts.append(place)
        if len(starts) != len(pictures) or ids.count(self._tokens.image_id) != size * len(pictures):
            raise TokenizerError(
                f"the tokenizer made {ids.count(self._tokens.image_id)} image tokens of {len(pictures)} images; "
                f"{self._piece} must be a special token of its own"
            )
        return tuple(
            PromptImage(start, start + size, picture.pixels, picture.digest)
            for start, picture in zip(starts, pictures, strict=True)
        )


def _text(tokenizer: Tokenizer, number: int) -> str:
    text = tokenizer.backend.id_to_token(number)
    if text is None:
        raise TokenizerError(
            f"{tokenizer.source}/tokenizer.json has no token {number}, with which config.json marks images"
        )
    return text
