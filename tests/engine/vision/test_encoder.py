"""Images in the engine: parity with transformers from the file on, beside text, in chunks, and from the cache."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from PIL import Image
from torch import Tensor

from coldstream.backends.assembly import Assembly
from coldstream.backends.torch.backend import TorchBackend
from coldstream.backends.torch.decoder import Decoder
from coldstream.backends.torch.vision import Sight
from coldstream.engine.engine import Engine
from coldstream.engine.outbox import Verified
from coldstream.engine.request import PromptImage, Request, SamplingParams, TokenEvent
from coldstream.engine.tokenizer.tokenizer import Tokenizer
from coldstream.engine.vision.encoder import ImageEncoder, PlacedImage
from coldstream.engine.vision.prompt import ImagePrompt
from coldstream.errors import EngineError, InvalidRequest, ParameterMismatch
from coldstream.model.config import ModelConfig
from coldstream.model.image_processor import ImageProcessor, content_digest
from coldstream.model.vision_config import VisionConfig
from coldstream.serve.images.decode import Picture
from coldstream.settings import EngineSettings
from tests.support.tiny import Tiny
from tests.support.tiny_vision import BEGIN, END, IMAGE, SIZE, TOKENS, gemma3_vision, photo

TURN = (
    "{{ bos_token }}{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<start_of_image>{% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return gemma3_vision()


def backend() -> tokenizers.Tokenizer:
    """One token a letter, and Gemma's image tokens at their ids."""
    letters = "abcdefghijklmnopqrstuvwxyz ?.\n"
    vocab = {"<pad>": 0, "<eos>": 1, "<bos>": 2} | {letter: 3 + place for place, letter in enumerate(letters)}
    vocab |= {f"<unused{place}>": place for place in range(len(vocab), BEGIN)}
    vocab |= {"<start_of_image>": BEGIN, "<image_soft_token>": IMAGE, "<end_of_image>": END}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    made.decoder = tokenizers.decoders.Fuse()
    made.add_special_tokens(["<pad>", "<eos>", "<bos>", "<start_of_image>", "<image_soft_token>", "<end_of_image>"])
    return made


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": TURN}
    return Tokenizer.load(
        {"tokenizer.json": backend().to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}
    )


@pytest.fixture(scope="module")
def reference() -> transformers.Gemma3Processor:
    extra = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend(), bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", extra_special_tokens=extra
    )
    processor = transformers.Gemma3ImageProcessor(size={"height": SIZE, "width": SIZE})
    return transformers.Gemma3Processor(processor, fast, image_seq_length=TOKENS)


def made(tiny: Tiny, *, fill_tower: bool = True) -> tuple[Decoder, Assembly]:
    decoder = Decoder(ModelConfig.from_json(tiny.config), vision=VisionConfig.from_json(tiny.config))
    assembly = Assembly(decoder, {name: tensor.shape for name, tensor in tiny.tensors.items()})
    for name, tensor in tiny.tensors.items():
        if fill_tower or name not in assembly.vision:
            assembly.assign(name, tensor)
    return decoder, assembly


PROCESSOR = ImageProcessor(SIZE, SIZE)


def picture(image: Image.Image) -> Picture:
    pixels = PROCESSOR.resize(image)
    return Picture("image", pixels, content_digest(pixels))


class Asked:
    """An engine, and what came out of it."""

    def __init__(
        self, decoder: Decoder, tokenizer: Tokenizer, *, verified: Verified = Verified.ALL, **settings: object
    ) -> None:
        assert decoder.vision is not None
        self.tokenizer = tokenizer
        vision = decoder.vision.config
        self.prompt = ImagePrompt(vision, tokenizer, PROCESSOR)
        chosen = EngineSettings(kv_bytes=4_000_000, **settings)  # type: ignore[arg-type]
        sight = Sight(decoder.vision, PROCESSOR)
        backend = TorchBackend(decoder, decoder.config, vision=sight)
        self.engine = Engine(backend, tokenizer, decoder.config, chosen, stop_ids=frozenset(), verified=verified)
        self.events: dict[str, list[TokenEvent]] = {}
        self._ended = threading.Condition()

    def request(self, key: str, text: str, images: Sequence[Image.Image] = (), **sampling: object) -> Request:
        ids = self.tokenizer.encode(self.prompt.expand(text, len(images)))
        placed = self.prompt.place(ids, [picture(image) for image in images])
        params = SamplingParams(max_tokens=8, **sampling)  # type: ignore[arg-type]
        return Request(key, tuple(ids), params, images=placed)

    def submit(self, request: Request) -> None:
        self.events[request.id] = []
        self.engine.submit(request, lambda event: self._deliver(request.id, event))

    def _deliver(self, key: str, event: TokenEvent) -> None:
        with self._ended:
            self.events[key].append(event)
            self._ended.notify_all()

    def ended(self, key: str) -> TokenEvent:
        with self._ended:
            assert self._ended.wait_for(lambda: self.events[key] and self.events[key][-1].finish_reason, timeout=60)
            return self.events[key][-1]

    def tokens(self, key: str) -> list[int]:
        self.ended(key)
        return [token for event in self.events[key] for token in event.token_ids]

    def scores(self, key: str) -> Tensor:
        """The prompt's log probabilities, one a token but the first."""
        self.ended(key)
        items = [item for event in self.events[key] for item in event.prompt_logprobs]
        return torch.tensor([item.logprob for item in items if item is not None])


@pytest.fixture
def ask(tiny: Tiny, tokenizer: Tokenizer) -> Callable[..., Asked]:
    running: list[Asked] = []

    def make(decoder: Decoder | None = None, *, start: bool = True, **settings: object) -> Asked:
        running.append(Asked(decoder or made(tiny)[0], tokenizer, **settings))
        if start:
            running[-1].engine.start()
        return running[-1]

    yield make
    for item in running:
        item.engine.stop()


B = "<start_of_image>"
PROMPTS = {
    "one": (f"{B}what is it?", [1]),
    "between": (f"<bos>look at this {B} and at that {B} which is larger?", [2, 3]),
    "side by side": (f"<bos>{B}{B}{B}count.", [4, 5, 4]),
    "text": ("<bos>no picture at all.", []),
}


def photos(numbers: Sequence[int]) -> list[Image.Image]:
    return [photo(number, 40 + 30 * number, 90) for number in numbers]


def expected(tiny: Tiny, reference: transformers.Gemma3Processor, text: str, images: list[Image.Image]) -> Tensor:
    """Logits `[tokens, vocab]` of transformers, from text and pictures through its own processor."""
    inputs = reference(text=text, images=images or None, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        logits: Tensor = tiny.model(**inputs).logits[0]
    return logits


@pytest.mark.parametrize("name", PROMPTS)
def test_the_prompts_ids_are_those_of_transformers_processor(
    name: str, reference: transformers.Gemma3Processor, tokenizer: Tokenizer, tiny: Tiny
) -> None:
    text, numbers = PROMPTS[name]
    config = VisionConfig.from_json(tiny.config)
    assert config is not None
    ours = tokenizer.encode(ImagePrompt(config, tokenizer, PROCESSOR).expand(text, len(numbers)))
    theirs = reference(text=text, images=photos(numbers) or None, add_special_tokens=False)["input_ids"]
    assert ours == (theirs[0] if isinstance(theirs[0], list) else theirs)


class Watched:
    """A decoder that remembers the logits of every token of every step."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.config, self.vision, self.attention_dtype = decoder.config, decoder.vision, decoder.attention_dtype
        self.steps: list[tuple[list[int], Tensor]] = []

    def forward(self, ids: Tensor, positions: Tensor, attend: object, rows: Tensor, **more: object) -> Tensor:
        logits: Tensor = self._decoder.forward(ids, positions, attend, torch.arange(len(ids)), **more)  # type: ignore[arg-type]
        self.steps.append((ids.tolist(), logits))
        return logits[rows]


@pytest.mark.parametrize("step_tokens", [512, 32])
@pytest.mark.parametrize("name", PROMPTS)
def test_logits_agree_with_transformers_from_the_image_file(
    name: str,
    step_tokens: int,
    tiny: Tiny,
    reference: transformers.Gemma3Processor,
    ask: Callable[..., Asked],
    tmp_path: Path,
) -> None:
    """Every position of the prompt, whole and in chunks."""
    text, numbers = PROMPTS[name]
    files = []
    for place, image in enumerate(photos(numbers)):
        files.append(tmp_path / f"{place}.png")
        image.save(files[-1])
    images = [Image.open(file).convert("RGB") for file in files]
    watched = Watched(made(tiny)[0])
    asked = ask(watched, step_tokens=step_tokens)
    asked.submit(asked.request("a", text, images))
    asked.ended("a")
    theirs = expected(tiny, reference, text, images)
    ours = torch.cat([logits for _, logits in watched.steps])[: len(theirs)]
    assert (ours - theirs).abs().max() < 1e-3


def test_images_of_one_batch_do_not_meet(
    tiny: Tiny, reference: transformers.Gemma3Processor, ask: Callable[..., Asked]
) -> None:
    """All prompts together, and text beside them: each one's scores are what transformers gives it alone."""
    asked = ask(start=False)
    for name, (text, numbers) in PROMPTS.items():
        asked.submit(asked.request(name, text, photos(numbers), prompt_logprobs=0))
    asked.engine.start()
    for name, (text, numbers) in PROMPTS.items():
        logits = expected(tiny, reference, text, photos(numbers))
        ids = torch.tensor(asked.request("x", text, photos(numbers)).prompt_ids)
        theirs = logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
        assert (asked.scores(name) - theirs).abs().max() < 1e-3


def test_the_cache_tells_images_apart_and_knows_them_again(ask: Callable[..., Asked]) -> None:
    text = "<bos>" + "a long beginning that fills a block " + f"{B}" + "and a long end that fills another block. tell."
    asked = ask()
    first, other, again = photos([1]), photos([2]), photos([1])
    for key, images in (("first", first), ("again", again), ("other", other)):
        asked.submit(asked.request(key, text, images))
        asked.ended(key)
    cached = {key: asked.ended(key).usage.cached_tokens for key in ("first", "other", "again")}
    begin = asked.request("x", text, first).images[0].start
    assert cached["first"] == 0
    assert cached["other"] <= begin
    assert cached["again"] > begin + TOKENS
    assert asked.tokens("again") == asked.tokens("first")


def test_an_image_that_is_half_in_the_cache_is_finished(ask: Callable[..., Asked]) -> None:
    """Its first tokens end a block; the rest is computed anew, and sees them."""
    text = "<bos>" + "a" * 27 + f"{B} what is it?"
    asked = ask()
    asked.submit(asked.request("first", text, photos([1])))
    want = asked.tokens("first")
    image = asked.request("x", text, photos([1])).images[0]
    assert image.start < 32 < image.end
    short = asked.request("short", text, photos([1]))
    asked.submit(Request("short", short.prompt_ids[:-8], short.sampling, images=short.images))
    asked.ended("short")
    asked.submit(asked.request("again", text, photos([1])))
    assert asked.tokens("again") == want
    assert asked.ended("again").usage.cached_tokens == 32


def test_an_image_is_never_cut_by_a_chunk(tiny: Tiny, ask: Callable[..., Asked]) -> None:
    watched = Watched(made(tiny)[0])
    asked = ask(watched, step_tokens=32)
    text = "<bos>" + "some words " * 5 + f"{B}{B}" + "more words " * 4 + f"{B} end"
    asked.submit(asked.request("a", text, photos([1, 2, 3])))
    asked.ended("a")
    chunks = [ids for ids, _ in watched.steps if len(ids) > 1]
    assert len(chunks) > 4
    for ids in chunks:
        assert ids.count(IMAGE) % TOKENS == 0


def test_text_is_answered_while_the_tower_is_still_landing(tiny: Tiny, ask: Callable[..., Asked]) -> None:
    decoder, assembly = made(tiny, fill_tower=False)
    asked = ask(decoder)
    asked.submit(asked.request("image", *[f"{B}what?", photos([1])]))
    asked.submit(asked.request("text", "<bos>hello"))
    assert asked.ended("text").finish_reason == "length"
    assert not asked.events["image"]
    for name in assembly.vision:
        assembly.assign(name, tiny.tensors[name])
    assembly.finish()
    assert asked.ended("image").finish_reason == "length"


def test_a_tower_that_fails_ends_the_image_request_with_its_error(tiny: Tiny, ask: Callable[..., Asked]) -> None:
    decoder, _ = made(tiny, fill_tower=False)
    asked = ask(decoder)
    asked.submit(asked.request("image", f"{B}what?", photos([1])))
    assert decoder.vision is not None
    decoder.vision.gate.fail(ParameterMismatch("the tower broke"))
    assert str(asked.ended("image").error) == "the tower broke"
    asked.submit(asked.request("text", "<bos>hello"))
    assert asked.ended("text").finish_reason == "length"


def test_a_waiting_image_request_can_be_cancelled(tiny: Tiny, ask: Callable[..., Asked]) -> None:
    decoder, assembly = made(tiny, fill_tower=False)
    asked = ask(decoder)
    asked.submit(asked.request("image", f"{B}what?", photos([1])))
    asked.engine.cancel("image")
    assert asked.ended("image").finish_reason == "cancelled"
    for name in assembly.vision:
        assembly.assign(name, tiny.tensors[name])
    asked.submit(asked.request("next", f"{B}what?", photos([1])))
    assert asked.ended("next").finish_reason == "length"


def held(decoder: Decoder, tokenizer: Tokenizer) -> Asked:
    """An engine that lets nothing go before it is told that the weights are verified."""
    asked = Asked(decoder, tokenizer, verified=Verified.NOTHING)
    asked.engine.start()
    return asked


def test_text_leaves_when_its_weights_are_verified_and_an_image_when_all_are(tiny: Tiny, tokenizer: Tokenizer) -> None:
    asked = held(made(tiny)[0], tokenizer)
    try:
        asked.submit(asked.request("image", f"<bos>{B}what?", photos([1])))
        asked.submit(asked.request("text", "<bos>hello"))
        while asked.engine.stats().completion_tokens < 16:  # both are complete
            threading.Event().wait(0.01)
        assert asked.events == {"image": [], "text": []}
        asked.engine.release_text()
        assert asked.ended("text").finish_reason == "length"
        asked.submit(asked.request("later", "<bos>hello"))
        assert asked.tokens("later") == asked.tokens("text")
        assert asked.events["image"] == []
        asked.engine.release()
        assert asked.ended("image").finish_reason == "length"
    finally:
        asked.engine.stop()


def test_after_new_weights_images_are_looked_at_again(tiny: Tiny, tokenizer: Tokenizer) -> None:
    """What was answered with the first delivery and not seen by anybody is answered again."""
    decoder, assembly = made(tiny)
    asked = held(decoder, tokenizer)
    try:
        name = "model.multi_modal_projector.mm_input_projection_weight"
        assembly.assign(name, tiny.tensors[name] * 0)
        asked.submit(asked.request("image", f"<bos>{B}what?", photos([1])))
        while not asked.engine.stats().completion_tokens:
            threading.Event().wait(0.01)
        assembly.assign(name, tiny.tensors[name])
        asked.engine.recompute_all()
        asked.engine.release()
        got = asked.tokens("image")
        asked.submit(asked.request("fresh", f"<bos>{B}what?", photos([1])))
        assert asked.tokens("fresh") == got
    finally:
        asked.engine.stop()
    plain = Asked(made(tiny)[0], tokenizer)
    plain.engine.start()
    plain.submit(plain.request("image", f"<bos>{B}what?", photos([1])))
    assert plain.tokens("image") == got
    plain.engine.stop()


class Counted:
    """A tower that counts what it looks at."""

    tokens_per_image, image_id = TOKENS, IMAGE

    def __init__(self) -> None:
        self.looked = 0

    def encode(self, pixels: np.ndarray) -> Tensor:
        self.looked += 1
        return torch.ones(TOKENS, 8)


def looked_at(encoder: ImageEncoder, *numbers: int) -> tuple[list[PlacedImage], Exception | None]:
    placed = []
    for number in numbers:
        item = picture(photo(number))
        placed.append(PlacedImage(PromptImage(0, TOKENS, item.pixels, item.digest)))
    done, errors = threading.Event(), []
    encoder.look(placed, lambda error: (errors.append(error), done.set()))
    assert done.wait(10)
    return placed, errors[0]


def test_the_same_picture_is_looked_at_once() -> None:
    tower = Counted()
    encoder = ImageEncoder(tower, thread=nullcontext, name="test")
    placed, _ = looked_at(encoder, 1, 2, 1)
    looked_at(encoder, 2)
    assert tower.looked == 2
    assert all(item.vectors is not None for item in placed)
    encoder.forget()
    looked_at(encoder, 1)
    assert tower.looked == 3
    encoder.close()


def test_vectors_that_are_not_finite_are_an_error(tiny: Tiny, ask: Callable[..., Asked]) -> None:
    decoder, assembly = made(tiny)
    name = "model.multi_modal_projector.mm_input_projection_weight"
    assembly.assign(name, torch.full_like(tiny.tensors[name], float("nan")))
    asked = ask(decoder)
    asked.submit(asked.request("image", f"{B}what?", photos([1])))
    error = asked.ended("image").error
    assert isinstance(error, EngineError)
    assert "not finite" in str(error)


def test_image_tokens_without_an_image_are_refused(ask: Callable[..., Asked]) -> None:
    asked = ask()
    with pytest.raises(InvalidRequest, match="no image for them"):
        asked.submit(Request("a", (2, IMAGE, 5)))


def test_an_image_in_the_wrong_place_is_refused(ask: Callable[..., Asked]) -> None:
    asked = ask()
    request = asked.request("a", f"{B}what?", photos([1]))
    moved = PromptImage(request.images[0].start + 1, request.images[0].end + 1, request.images[0].pixels, b"")
    with pytest.raises(InvalidRequest, match="is not 4 image tokens there"):
        asked.submit(Request("a", request.prompt_ids, images=(moved,)))


def test_an_image_for_a_text_model_is_refused(tiny: Tiny, tokenizer: Tokenizer) -> None:
    decoder, _ = made(tiny)
    settings = EngineSettings(kv_bytes=4_000_000)
    engine = Engine(TorchBackend(decoder, decoder.config), tokenizer, decoder.config, settings)
    with pytest.raises(InvalidRequest, match="takes text only"):
        engine.submit(Request("a", (2, 3), images=(PromptImage(0, 1, np.zeros((1, 1, 3), np.uint8), b""),)), print)


def test_a_marker_in_somebodys_text_is_refused(ask: Callable[..., Asked]) -> None:
    prompt = ask(start=False).prompt
    with pytest.raises(InvalidRequest, match="cannot be part of a text"):
        prompt.expand(f"{B}what is {B}?", 1)
    with pytest.raises(InvalidRequest, match="cannot be part of a text"):
        prompt.expand("what is <image_soft_token>?", 0)
