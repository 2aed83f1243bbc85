"""Images over HTTP: /generate in JSON and as a form, chat parts, tasks with image inputs, and every bad input."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from coldstream import settings as settings_module
from coldstream.engine.vision.prompt import ImagePrompt
from coldstream.errors import SettingsError
from coldstream.model.image_processor import ImageProcessor
from coldstream.model.vision_config import VisionConfig
from coldstream.serve.images.multipart import parse
from coldstream.settings import ImageSettings, InputSettings, ModelSettings, Settings, TaskSettings
from tests.support import processes
from tests.support.pictures import b64, data_url, encoded, gif_header_only, image, png_header_only
from tests.support.scripted import LetterTokenizer, ScriptedModel

BEGIN, PIECE, END = "\ue000", "\ue001", "\ue002"
TOKENS = 4
RED, BLUE = encoded(image(color=(250, 0, 0))), encoded(image(color=(0, 0, 250)))


class _Letters:
    """Ids are code points."""

    def id_to_token(self, id: int) -> str:
        return chr(id)


class SeeingTokenizer(LetterTokenizer):
    """Its chat template writes a marker for each image part, as Gemma's does."""

    backend, source = _Letters(), "test"

    def apply_chat_template(self, messages: Sequence[Any], **options: Any) -> str:
        return super().apply_chat_template(
            [{**message, "content": _flat(message["content"])} for message in messages], **options
        )


def _flat(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(BEGIN if part["type"] == "image" else part["text"] for part in content)


VISION = VisionConfig(16, 4, 3, 8, 8, 1, 1, 1e-6, "gelu", 8, TOKENS, ord(BEGIN), ord(PIECE), ord(END))
WHOLE = f"\n\n{BEGIN}{PIECE * TOKENS}{END}\n\n"


def seeing(engine: Any, *, chat: bool = True, name: str = "default") -> ScriptedModel:
    tokenizer = SeeingTokenizer(chat=chat)
    prompt = ImagePrompt(VISION, tokenizer, ImageProcessor(16, 16))  # type: ignore[arg-type]
    return ScriptedModel(engine, name=name, tokenizer=tokenizer, images=prompt)


PRODUCT = TaskSettings(
    "product",
    "default",
    prompt="{product} ({category}):",
    prompt_input="product",
    images=1,
    inputs={
        "product": InputSettings(help="What it is called"),
        "category": InputSettings("choice", "home", ("home", "garden")),
    },
)
COMPARE = TaskSettings(
    "compare",
    "default",
    prompt="First {left} then {right}. {prompt}",
    inputs={"left": InputSettings("image"), "right": InputSettings("image", help="The newer one")},
)
PLAIN = TaskSettings("plain", "default")


def settings(*tasks: TaskSettings, **images: Any) -> Settings:
    named = {task.name: task for task in (tasks or (PRODUCT, COMPARE, PLAIN))}
    limits = ImageSettings(**{"max_count": 2, "max_bytes": 50_000, "max_pixels": 10_000, **images})
    return Settings({"default": ModelSettings("default", "gs://bucket/m")}, named, images=limits)


async def ask(served: Any, **body: Any) -> Any:
    return await served.client.post("/generate", json=body)


def text_of(request: Any) -> str:
    return "".join(map(chr, request.prompt_ids))


def seen(request: Any) -> list[tuple[int, int, int]]:
    """The colour of each image that the engine was given, checked to stand on image tokens."""
    for item in request.images:
        assert text_of(request)[item.start - 1 : item.end + 1] == BEGIN + PIECE * TOKENS + END
    return [tuple(item.pixels[0, 0].tolist()) for item in request.images]


@pytest.mark.parametrize("form", [b64(RED), data_url(RED)])
async def test_an_image_comes_before_the_text(serve, engine, form) -> None:
    used = engine()
    served = await serve(seeing(used), settings())
    answer = await ask(served, type="product", prompt="Mug", image=form)
    assert answer.status_code == 200, answer.text
    (request,) = used.submitted
    assert seen(request) == [(250, 0, 0)]
    assert text_of(request) == f"user\n{WHOLE}Mug (home):\nmodel\n"


async def test_a_model_without_a_chat_template_sees_too(serve, engine) -> None:
    used = engine()
    served = await serve(seeing(used, chat=False), settings())
    await ask(served, type="product", prompt="Mug", images=[b64(RED)])
    assert text_of(used.submitted[0]) == f"{WHOLE}Mug (home):"


async def test_named_images_stand_where_the_template_names_them(serve, engine) -> None:
    used = engine()
    served = await serve(seeing(used), settings())
    inputs = {"right": b64(BLUE)}
    answer = await ask(served, type="compare", prompt="Well?", inputs=inputs, image=b64(RED), details=True)
    assert answer.status_code == 200, answer.text
    assert seen(used.submitted[0]) == [(250, 0, 0), (0, 0, 250)]
    assert text_of(used.submitted[0]) == f"user\nFirst {WHOLE} then {WHOLE}. Well?\nmodel\n"


async def test_the_same_picture_has_one_digest_whatever_its_file(serve, engine) -> None:
    used = engine()
    served = await serve(seeing(used), settings())
    again = encoded(image(color=(250, 0, 0)), "GIF")
    for data in (RED, again, BLUE):
        await ask(served, type="product", prompt="Mug", image=b64(data))
    one, two, three = (request.images[0].digest for request in used.submitted)
    assert one == two != three


async def test_a_form_with_a_file_is_the_same_request(serve, engine) -> None:
    used = engine()
    served = await serve(seeing(used), settings())
    answer = await served.client.post(
        "/generate",
        data={"type": "product", "inputs.product": "Mug", "max_tokens": "3", "details": "true"},
        files={"image": ("red.png", RED, "image/png")},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["text"] == "hel"
    assert seen(used.submitted[0]) == [(250, 0, 0)]


async def test_a_form_may_hold_several_images_and_inputs_as_json(serve, engine) -> None:
    used = engine()
    served = await serve(seeing(used), settings())
    answer = await served.client.post(
        "/generate",
        data={"type": "compare", "inputs": '{"prompt": "Well?"}'},
        files=[("images", ("a.png", RED)), ("images", ("b.png", BLUE))],
    )
    assert answer.status_code == 200, answer.text
    assert seen(used.submitted[0]) == [(250, 0, 0), (0, 0, 250)]


async def test_a_broken_form_is_refused(serve, engine) -> None:
    served = await serve(seeing(engine()), settings())
    for body, kind in ((b"--x\r\n", "multipart/form-data; boundary=x"), (b"", "multipart/form-data")):
        answer = await served.client.post("/generate", content=body, headers={"content-type": kind})
        assert answer.status_code == 422
        assert "form" in answer.json()["error"]["message"]


def test_a_files_bytes_survive_a_form_whatever_they_are() -> None:
    data = bytes(range(256)) + b"\r\n--\r\n\n\r--x-\r\n"
    part = b'--xy\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + data + b"\r\n--xy--\r\n"
    assert parse(part, "multipart/form-data; boundary=xy") == {"image": b64(data)}


async def chat(served: Any, *content: Any, model: str = "default", **more: Any) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": list(content)}], **more}
    return await served.client.post("/v1/chat/completions", json=body)


def part(data: bytes, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data), **more}}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


async def test_chat_parts_keep_their_order(serve, engine) -> None:
    used = engine()
    served = await serve(seeing(used), settings())
    answer = await chat(served, words("this "), part(RED), words(" or "), part(BLUE, detail="auto"), words("?"))
    assert answer.status_code == 200, answer.text
    assert seen(used.submitted[0]) == [(250, 0, 0), (0, 0, 250)]
    assert text_of(used.submitted[0]) == f"user\nthis {WHOLE} or {WHOLE}?\nmodel\n"


@pytest.mark.parametrize("detail", ["auto", "low", "high", "original", None])
async def test_every_detail_is_taken_since_all_images_are_seen_at_one_size(serve, engine, detail) -> None:
    served = await serve(seeing(engine()), settings())
    assert (await chat(served, part(RED, detail=detail))).status_code == 200
    assert (await chat(served, part(RED, detail="best"))).status_code == 400


async def test_an_image_is_seen_through_responses_too(serve, engine) -> None:
    used = engine()
    served = await serve(seeing(used), settings())
    content = [
        {"type": "input_text", "text": "this "},
        {"type": "input_image", "image_url": data_url(RED), "detail": "auto"},
    ]
    body = {"model": "default", "input": [{"role": "user", "content": "a"}, {"role": "user", "content": content}]}
    answer = await served.client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    assert seen(used.submitted[0]) == [(250, 0, 0)]
    assert text_of(used.submitted[0]) == f"user\na\nuser\nthis {WHOLE}\nmodel\n"
    broken = body["input"][1] | {"content": [{"type": "input_image", "image_url": "data:image/png;base64,!"}]}
    refused = await served.client.post("/v1/responses", json={"model": "default", "input": [broken]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input.0.content.0.image_url")


async def test_a_task_is_asked_through_chat_with_an_image(serve, engine) -> None:
    used = engine()
    served = await serve(seeing(used), settings())
    answer = await chat(served, part(BLUE), words("Mug"), model="product")
    assert answer.status_code == 200, answer.text
    assert seen(used.submitted[0]) == [(0, 0, 250)]
    assert text_of(used.submitted[0]) == f"user\n{WHOLE}Mug (home):\nmodel\n"


async def test_samples_of_one_prompt_share_its_image(serve, engine) -> None:
    used = engine()
    served = await serve(seeing(used), settings())
    assert (await chat(served, part(RED), words("?"), n=2)).status_code == 200
    assert [seen(request) for request in used.submitted] == [[(250, 0, 0)]] * 2


BAD: dict[str, tuple[str, str]] = {
    "not an image": (b64(b"hello, I am text"), "not an image"),
    "truncated": (b64(encoded(image(80, 80), "JPEG")[:400]), "broken or cut off"),
    "40,000 x 40,000": (b64(png_header_only(40_000, 40_000)), "10000 pixels"),
    "svg": (data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "not an image"),
    "animated bomb": (b64(gif_header_only(60_000, 60_000)), "10000 pixels"),
    "base64 garbage": ("%%%%not base64%%%%", "not valid base64"),
    "too large": (b64(b"\xff\xd8\xff" + b"0" * 60_000), "50000 bytes"),
    "a url": ("https://example.com/a.png", "fetches no URLs"),
    "metadata": ("https://169.254.169.254/latest/meta-data", "fetches no URLs"),
    "plain http": ("http://example.com/a.png", "only https:// and gs://"),
    "another bucket": ("gs://secrets/a.png", "bucket 'secrets'"),
    "a file": ("file:///etc/passwd", "only https:// and gs://"),
    "a path": ("/etc/passwd", "base64"),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_images_are_refused_with_the_field_and_the_limit(serve, engine, name) -> None:
    text, named = BAD[name]
    used = engine()
    served = await serve(seeing(used), settings())
    answer = await ask(served, type="product", prompt="Mug", image=text)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "image"
    assert named in answer.json()["error"]["message"]
    assert not used.submitted


async def test_an_image_for_a_text_only_model_is_refused(serve, engine) -> None:
    used = engine()
    served = await serve(ScriptedModel(used), settings())
    answer = await ask(served, type="product", prompt="Mug", image=b64(RED))
    assert answer.status_code == 422
    assert "takes text only" in answer.json()["error"]["message"]
    assert answer.json()["error"]["field"] == "image"
    assert not used.submitted


async def test_an_image_for_a_text_task_is_refused(serve, engine) -> None:
    served = await serve(seeing(engine()), settings())
    answer = await ask(served, type="plain", prompt="Mug", image=b64(RED))
    assert answer.status_code == 422
    assert "'plain' takes no image" in answer.json()["error"]["message"]


async def test_too_many_images_for_a_task_are_refused(serve, engine) -> None:
    served = await serve(seeing(engine()), settings())
    answer = await ask(served, type="product", prompt="Mug", images=[b64(RED), b64(BLUE)])
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "images.1"
    assert "takes 1 image, but 2 came" in answer.json()["error"]["message"]


async def test_too_many_images_for_the_server_are_refused(serve, engine) -> None:
    served = await serve(seeing(engine()), settings())
    answer = await chat(served, part(RED), part(RED), part(BLUE), words("?"))
    assert answer.status_code == 400
    assert "at most 2" in answer.json()["error"]["message"]


async def test_a_missing_image_is_named_with_the_tasks_schema(serve, engine) -> None:
    served = await serve(seeing(engine()), settings())
    answer = await ask(served, type="product", prompt="Mug")
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (422, "image")
    assert error["schema"]["required"] == ["product"]


async def test_a_missing_input_is_named_with_the_tasks_schema(serve, engine) -> None:
    served = await serve(seeing(engine()), settings())
    answer = await ask(served, type="compare", prompt="Well?", image=b64(RED))
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (422, "inputs.right")
    assert "The newer one" in error["message"]
    assert error["schema"]["properties"]["right"]["contentMediaType"] == "image/*"
    assert error["schema"]["required"] == ["left", "right", "prompt"]


async def test_image_and_images_exclude_each_other(serve, engine) -> None:
    served = await serve(seeing(engine()), settings())
    answer = await ask(served, type="product", prompt="Mug", image=b64(RED), images=[b64(RED)])
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "image")


async def test_a_marker_in_a_text_is_refused(serve, engine) -> None:
    served = await serve(seeing(engine()), settings())
    answer = await ask(served, type="product", prompt=f"Mug {BEGIN}", image=b64(RED))
    assert answer.status_code == 422
    assert "cannot be part of a text" in answer.json()["error"]["message"]


async def test_completions_take_no_task_with_images(serve, engine, tmp_path: Path) -> None:
    photo = tmp_path / "red.png"
    photo.write_bytes(RED)
    task = TaskSettings("one", "default", inputs={"photo": InputSettings("image", str(photo))})
    served = await serve(seeing(engine()), settings(task))
    answer = await served.client.post("/v1/completions", json={"model": "one", "prompt": "x"})
    assert answer.status_code == 400
    assert "/generate" in answer.json()["error"]["message"]


TOML = """
[models.m]
uri = "gs://bucket/m"
[tasks.product]
prompt = "{photo} {product}:"
prompt_input = "product"
inputs.product.default = "Mug"
[tasks.product.inputs.photo]
kind = "image"
default = "mug.png"
help = "A photo"
"""


async def test_defaults_are_used_named_and_not_shown(serve, engine, tmp_path: Path) -> None:
    (tmp_path / "mug.png").write_bytes(BLUE)
    (tmp_path / "coldstream.toml").write_text(TOML)
    loaded = settings_module.load(tmp_path / "coldstream.toml", environ={})
    used = engine()
    served = await serve(seeing(used, name="m"), loaded)
    answer = await ask(served, type="product", details=True)
    assert answer.status_code == 200, answer.text
    assert answer.json()["inputs_defaulted"] == ["photo", "product"]
    assert seen(used.submitted[0]) == [(0, 0, 250)]
    assert text_of(used.submitted[0]) == f"user\n{WHOLE} Mug:\nmodel\n"
    shown = (await served.client.get("/v1/tasks")).text
    assert str(tmp_path) not in shown
    sample = await served.client.get("/v1/tasks/product/inputs/photo")
    assert (sample.content, sample.headers["content-type"]) == (BLUE, "image/png")
    for path in ("product/inputs/product", "product/inputs/other", "other/inputs/photo"):
        assert (await served.client.get(f"/v1/tasks/{path}")).status_code == 404


async def test_a_sample_that_is_no_picture_is_refused_by_name(serve, engine, tmp_path: Path) -> None:
    (tmp_path / "mug.png").write_bytes(b"<html>")
    (tmp_path / "coldstream.toml").write_text(TOML)
    served = await serve(seeing(engine(), name="m"), settings_module.load(tmp_path / "coldstream.toml", environ={}))
    refused = await served.client.get("/v1/tasks/product/inputs/photo")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "photo")


async def test_defaults_say_that_they_are_there(serve, engine, tmp_path: Path) -> None:
    (tmp_path / "mug.png").write_bytes(BLUE)
    (tmp_path / "coldstream.toml").write_text(TOML)
    served = await serve(seeing(engine(), name="m"), settings_module.load(tmp_path / "coldstream.toml", environ={}))
    shown = (await served.client.get("/v1/tasks")).text
    assert '"x-has-default":true' in shown


def test_a_default_image_that_is_not_there_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "coldstream.toml").write_text(TOML)
    with pytest.raises(SettingsError, match=r"inputs\.photo\.default: there is no file .*mug\.png"):
        settings_module.load(tmp_path / "coldstream.toml", environ={})


def test_an_image_in_the_system_text_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "mug.png").write_bytes(BLUE)
    text = TOML.replace('prompt = "', 'system = "{photo}"\nprompt = "')
    (tmp_path / "coldstream.toml").write_text(text)
    with pytest.raises(SettingsError, match="an image cannot stand in the system text"):
        settings_module.load(tmp_path / "coldstream.toml", environ={})


@pytest.mark.parametrize(("key", "value"), [("formats", '["svg"]'), ("max_bytes", "0"), ("max_pixel", "5")])
def test_wrong_image_settings_are_named(tmp_path: Path, key: str, value: str) -> None:
    (tmp_path / "coldstream.toml").write_text(f'[models.m]\nuri = "gs://b/m"\n[images]\n{key} = {value}\n')
    with pytest.raises(SettingsError, match=rf"images\.{key}"):
        settings_module.load(tmp_path / "coldstream.toml", environ={})


async def test_decoding_does_not_block_the_loop(serve, engine) -> None:
    """While the process that decodes stands still, others are answered."""
    served = await serve(seeing(engine()), settings())
    before = set(processes.children(os.getpid()))
    assert (await ask(served, type="product", prompt="Mug", image=b64(BLUE))).status_code == 200
    decoding = set(processes.children(os.getpid())) - before
    assert decoding
    for pid in decoding:
        os.kill(pid, signal.SIGSTOP)
    try:
        asking = asyncio.create_task(ask(served, type="product", prompt="Mug", image=b64(BLUE)))
        for _ in range(5):
            assert (await ask(served, type="plain", prompt="x")).json() == "hello"
        assert not asking.done()
    finally:
        for pid in decoding:
            os.kill(pid, signal.SIGCONT)
    assert (await asking).status_code == 200
