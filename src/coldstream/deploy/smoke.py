"""The smoke test: is the new revision ready, and does it answer each task with something that is an answer?

`problem` judges a text; it is pure. Requests carry an identity token of the invoker, as every later caller's will.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from coldstream.deploy.clock import Clock
from coldstream.deploy.service import READY
from coldstream.errors import CloudUnavailable, DeployError, PermissionRefused
from coldstream.settings import InputSettings, Settings, SmokeSettings, TaskSettings

PROMPT = "What is the capital of France?"
MAX_TOKENS = 64
# A grant takes two minutes, at times more than seven: https://cloud.google.com/iam/docs/access-change-propagation.
PATIENCE = 900.0


@dataclass(frozen=True, slots=True)
class Question:
    """One request to /generate, and what its answer must contain."""

    task: str
    body: Mapping[str, Any]
    expect: str | None

    @property
    def prompt(self) -> str:
        return str(self.body.get("prompt", ""))


def questions(settings: Settings, smoke: Mapping[str, SmokeSettings]) -> tuple[Question, ...]:
    """One for each task: the settings' own, or one made from defaults, choices and a plain question.

    Raises:
        DeployError: `[deploy.smoke.NAME]` names a task that is not there.
    """
    unknown = sorted(smoke.keys() - settings.tasks.keys())
    if unknown:
        raise DeployError(f"deploy.smoke.{unknown[0]}: no such task; the tasks are {', '.join(sorted(settings.tasks))}")
    return tuple(_question(task, smoke.get(name, SmokeSettings())) for name, task in settings.tasks.items())


def _question(task: TaskSettings, wanted: SmokeSettings) -> Question:
    variables = [name for name in task.variables if name != task.prompt_input]
    images = [name for name, item in task.inputs.items() if item.kind == "image"]
    inputs = {name: _value(task.inputs.get(name, InputSettings())) for name in [*variables, *images]}
    inputs |= wanted.inputs
    body: dict[str, Any] = {"type": task.name, "max_tokens": MAX_TOKENS, "temperature": 0.0}
    if task.prompt_input in task.variables and task.prompt_input not in inputs:
        body["prompt"] = wanted.prompt or _value(task.inputs.get(task.prompt_input, InputSettings()))
    if inputs:
        body["inputs"] = inputs
    # `images` counts all pictures that a task takes; those that no input names are sent beside the inputs.
    unnamed = task.images - len(images)
    if unnamed > 0:
        body["images"] = [_image()] * unnamed
    return Question(task.name, body, wanted.expect)


def _value(item: InputSettings) -> str:
    if item.kind == "image":
        return _image()
    if item.kind == "choice":
        return item.default or item.choices[0]
    return item.default or PROMPT


def _image() -> str:
    """A grey PNG of 32 x 32 pixels as a data URI (https://www.w3.org/TR/png-3/)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 32, 32, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x80" * 32) * 32)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


def problem(question: Question, text: Any) -> str | None:
    """Why a reply is no answer; None when it may be one."""
    if not isinstance(text, str):
        return f"the reply is not a string: {text!r:.80}"
    stripped = text.strip()
    if not stripped:
        return "the answer is empty"
    if question.expect is not None and question.expect not in text:
        return f"the answer lacks {question.expect!r}: {stripped[:80]!r}"
    if question.prompt and stripped == question.prompt.strip():
        return "the answer is the prompt itself"
    unreadable = sum(1 for letter in stripped if letter == "\ufffd" or not (letter.isprintable() or letter.isspace()))
    if unreadable > 0.1 * len(stripped):
        return f"the answer is unreadable: {stripped[:40]!r}"
    words = stripped.split()
    if len(words) >= 12 and len(set(words)) <= len(words) // 6:
        return f"the answer repeats itself: {stripped[:60]!r}"
    if len(words) < 12 and len(stripped) >= 40 and len(set(stripped)) <= 4:
        return f"the answer repeats itself: {stripped[:60]!r}"
    return None


@dataclass(frozen=True, slots=True)
class Reply:
    """What the service answered."""

    status: int
    body: Any


def send(method: str, url: str, headers: Mapping[str, str], body: Mapping[str, Any] | None) -> Reply:
    """One request; redirects are not followed.

    Raises:
        CloudUnavailable: no answer.
    """
    requests = import_module("requests")
    try:
        answer = requests.request(method, url, json=body, headers=headers, timeout=330, allow_redirects=False)
    except requests.RequestException as exc:
        raise CloudUnavailable(f"{url}: no answer ({exc})") from exc
    try:
        return Reply(answer.status_code, answer.json())
    except ValueError:
        return Reply(answer.status_code, answer.text)


def headers(token: str | None, key: str | None) -> dict[str, str]:
    """How a caller gets in: an identity token for Cloud Run, an API key for the server, or both.

    Cloud Run looks at X-Serverless-Authorization first, and hands Authorization on to the server
    (https://cloud.google.com/run/docs/authenticating/service-to-service).
    """
    if key is None:
        return {} if token is None else {"Authorization": f"Bearer {token}"}
    door = {} if token is None else {"X-Serverless-Authorization": f"Bearer {token}"}
    return {**door, "Authorization": f"Bearer {key}"}


@dataclass(frozen=True, slots=True)
class Door:
    """A deployed revision: its address, where tokens for it come from (None: public), and the server's API key."""

    url: str
    token: Callable[[], str] | None
    key: str | None = field(default=None, repr=False)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        """One request."""
        token = None if self.token is None else self.token()
        return send(method, f"{self.url}{path}", headers(token, self.key), body)


def wait_until_ready(door: Door, *, clock: Clock, tick: Callable[[str], None]) -> None:
    """Ask /ready until it is 200; 401 and 403 may be a grant on its way, 503 a model that still loads.

    Raises:
        DeployError: it was not ready in time; the last answer is named.
    """
    begun, pause = clock.now(), 2.0
    while True:
        try:
            reply = door.ask("GET", READY)
        except PermissionRefused as exc:
            reply = Reply(403, str(exc))
        except CloudUnavailable as exc:
            reply = Reply(503, str(exc))
        if reply.status == 200:
            return
        waited = clock.now() - begun
        if waited > PATIENCE or reply.status not in (401, 403, 429, 500, 502, 503, 504):
            raise DeployError(f"{door.url}{READY} answers {reply.status} after {waited:.0f} s: {reply.body!r:.200}")
        what = "the invoker's grant to act" if reply.status in (401, 403) else "the model"
        tick(f"waiting for {what}: HTTP {reply.status} after {waited:.0f} s")
        clock.sleep(pause)
        pause = min(30.0, pause * 1.5)


def check(door: Door, asked: tuple[Question, ...], *, tell: Callable[[str], None]) -> None:
    """Each task once.

    Raises:
        DeployError: an answer that is none; all of them are named.
    """
    problems = []
    for question in asked:
        reply = door.ask("POST", "/generate", question.body)
        wrong = f"HTTP {reply.status}: {reply.body!r:.120}" if reply.status != 200 else problem(question, reply.body)
        tell(f"task {question.task}: {'answers ' + repr(reply.body)[:80] if wrong is None else wrong}")
        if wrong is not None:
            problems.append(f"task {question.task}: {wrong}")
    if problems:
        raise DeployError("; ".join(problems))
