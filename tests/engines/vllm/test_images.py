"""Where pictures stand in a prompt that vLLM expands: markers stay, and none comes from a text."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest

from coldstream.engine.request import Request
from coldstream.engines.vllm.images import MarkedImages
from coldstream.engines.vllm.outputs import prompt
from coldstream.errors import InvalidRequest, TokenizerError
from tests.support.parts import VOCAB, make_tokenizer

MARKER = "<turn>"


def pictures(count: int) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(pixels=np.full((2, 3, 3), shade, np.uint8), digest=bytes([shade])) for shade in range(count)
    ]


def test_a_marker_is_left_where_it_is_and_is_the_pictures_place() -> None:
    images = MarkedImages(MARKER, make_tokenizer())
    text = images.expand(f"ab{MARKER}c{MARKER}", 2)
    assert text == f"ab{MARKER}c{MARKER}"
    ids = make_tokenizer().encode(text, add_special_tokens=False)
    placed = images.place(ids, pictures(2))
    assert [ids[item.start : item.end] for item in placed] == [[VOCAB[MARKER]]] * 2
    assert [item.digest for item in placed] == [b"\0", b"\1"]


@pytest.mark.parametrize("text", ["no marker", f"{MARKER}{MARKER}"])
def test_more_or_fewer_markers_than_images_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="marks images"):
        MarkedImages(MARKER, make_tokenizer()).expand(text, 1)


def test_a_marker_that_is_no_token_is_the_tokenizers_fault() -> None:
    images = MarkedImages(MARKER, make_tokenizer())
    with pytest.raises(TokenizerError, match="0 image markers of 1 images"):
        images.place([5, 6], pictures(1))


def test_vllm_gets_the_pictures_beside_the_ids_and_a_name_for_each() -> None:
    images = MarkedImages(MARKER, make_tokenizer())
    ids = (5, VOCAB[MARKER], 6)
    made = prompt(Request("a", ids, images=images.place(ids, pictures(1))))
    (picture,) = made["multi_modal_data"]["image"]
    assert made["prompt_token_ids"] == list(ids)
    assert (picture.size, picture.mode) == ((3, 2), "RGB")
    assert made["multi_modal_uuids"] == {"image": ["00"]}
    assert set(prompt(Request("b", (5,)))) == {"prompt_token_ids"}


def test_requests_of_different_salts_share_neither_prompts_nor_pictures() -> None:
    images = MarkedImages(MARKER, make_tokenizer())
    ids = (5, VOCAB[MARKER], 6)
    placed = images.place(ids, pictures(1))
    one, other = (prompt(Request("a", ids, images=placed, salt=salt)) for salt in (b"x", b"y"))
    assert one["cache_salt"] != other["cache_salt"]
    assert one["multi_modal_uuids"] != other["multi_modal_uuids"]


def test_every_field_of_a_request_is_known_to_the_adapter() -> None:
    """A field that comes to be must be honoured or refused here, too."""
    known = {"id", "prompt_ids", "sampling", "deadline", "images", "salt"}
    assert {item.name for item in fields(Request)} == known
