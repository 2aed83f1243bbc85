"""`coldstream chat URL`: talk to a running server, ours or any with OpenAI's chat API; the answer comes as a stream."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, TextIO
from urllib.parse import urlsplit

import typer

from coldstream.errors import ColdstreamError, LocationError, NotReady, RequestError, StoreUnavailable

_HELP = "/system TEXT sets the system message, /reset forgets the conversation, /quit ends (so does Ctrl-D)."
_KEY_VARIABLE = "COLDSTREAM_API_KEY"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(chat)


def chat(
    url: Annotated[str, typer.Argument(help="Where the server is, such as http://localhost:8080.")],
    question: Annotated[str | None, typer.Argument(help="Ask this and end; without it, a conversation.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A model or a task. [default: one that holds a conversation]")
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0, help="0 is greedy.")] = None,
) -> None:
    """Talk to a server. An API key is read from $COLDSTREAM_API_KEY.

    coldstream chat http://localhost:8080
    """
    options = {"max_tokens": max_tokens, "temperature": temperature}
    given = {name: value for name, value in options.items() if value is not None}
    with Client(url, os.environ.get(_KEY_VARIABLE)) as client:
        talk = Conversation(client, model or client.first_model(), system, given)
        if question is not None:
            talk.ask(question, sys.stdout)
        else:
            converse(talk, input, sys.stdout)


def converse(talk: Conversation, read: Callable[[str], str], out: TextIO) -> None:
    """Ask what is read, until its end; an error ends a turn, not the conversation, and Ctrl-C an answer."""
    out.write(f"{talk.model}. {_HELP}\n")
    while True:
        try:
            line = read("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            out.write("\n")
            return
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return
        try:
            _turn(talk, command, rest, line, out)
        except KeyboardInterrupt:
            out.write(" [stopped]\n")
        except ColdstreamError as exc:
            out.write(f"error: {exc}\n")


def _turn(talk: Conversation, command: str, rest: str, line: str, out: TextIO) -> None:
    if command == "/reset":
        talk.reset()
    elif command == "/system":
        talk.system = rest.strip() or None
        talk.reset()
    elif command.startswith("/"):
        out.write(f"{_HELP}\n")
    elif line:
        talk.ask(line, out)


@dataclass
class Conversation:
    """What was said so far. A question whose answer failed or was stopped before any text is forgotten again."""

    client: Client
    model: str
    system: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, str]] = field(default_factory=list)

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.turns.clear()

    def ask(self, question: str, out: TextIO) -> None:
        """Write the answer as it comes, then how fast it came.

        Raises:
            ColdstreamError: the server cannot be reached, or refuses.
        """
        asked = {"role": "user", "content": question}
        system = [{"role": "system", "content": self.system}] if self.system else []
        pieces: list[str] = []
        begin = time.monotonic()
        first = begin
        try:
            for piece in self.client.stream(self.model, [*system, *self.turns, asked], self.options):
                first = first if pieces else time.monotonic()
                pieces.append(piece)
                out.write(piece)
                out.flush()
        finally:
            if pieces:
                self.turns += [asked, {"role": "assistant", "content": "".join(pieces)}]
        rate = (
            f", {(self.client.tokens - 1) / (time.monotonic() - first):.1f} tokens/s" if self.client.tokens > 1 else ""
        )
        out.write(f"\n[{self.client.tokens} tokens, first after {first - begin:.2f} s{rate}]\n")


class Client:
    """A little of OpenAI's API over HTTP.

    Raises:
        LocationError: the URL is not one of a server.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LocationError(f"{url!r} is not the URL of a server; write http://HOST:PORT")
        import httpx2

        self._errors = httpx2
        self._base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.Client(base_url=self._base, headers=headers, timeout=httpx2.Timeout(600.0, connect=10.0))
        self.tokens = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def first_model(self) -> str:
        """The model of the first task that takes nothing but a prompt; where there is none, the server's first.

        Such a model can hold a conversation, others may know one thing only. The page begins with the same one.
        """
        reply = self._checked(lambda: self._http.get("/v1/models"))
        names = [str(item.get("id")) for item in reply.json().get("data", [])]
        if not names:
            raise RequestError(f"{self._base} serves no model; name one with --model")
        tasks = self._checked(lambda: self._http.get("/v1/tasks"), unless=404).json().get("data", [])  # 404: not ours
        talkers = (
            str(task["model"]) for task in tasks if not task["images"] and [*task["inputs"]["properties"]] == ["prompt"]
        )
        return next(talkers, names[0])

    def stream(self, model: str, messages: list[dict[str, str]], options: dict[str, Any]) -> Iterator[str]:
        """The pieces of an answer; `tokens` is their number afterwards.

        Raises:
            StoreUnavailable, RequestError, NotReady: the server cannot be reached, or says no.
        """
        self.tokens = 0
        body = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body | options) as reply:
                if reply.status_code != 200:
                    reply.read()
                    raise self._refused(reply)
                for event in _events(reply.iter_lines()):
                    yield from self._pieces(event)
        except self._errors.HTTPError as exc:
            raise self._unreachable(exc) from exc

    def _pieces(self, event: dict[str, Any]) -> Iterator[str]:
        if event.get("error"):
            raise RequestError(f"{self._base}: {event['error'].get('message', event['error'])}")
        self.tokens = int((event.get("usage") or {}).get("completion_tokens", self.tokens))
        for choice in event.get("choices", []):
            text = (choice.get("delta") or {}).get("content")
            if text:
                yield str(text)

    def _checked(self, send: Callable[[], Any], unless: int = 200) -> Any:
        try:
            reply = send()
        except self._errors.HTTPError as exc:
            raise self._unreachable(exc) from exc
        if reply.status_code not in (200, unless):
            raise self._refused(reply)
        return reply

    def _unreachable(self, exc: Exception) -> ColdstreamError:
        return StoreUnavailable(f"{self._base} cannot be reached ({exc or type(exc).__name__}); is the server running?")

    def _refused(self, reply: Any) -> ColdstreamError:
        try:
            message = reply.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"HTTP {reply.status_code}"
        if reply.status_code == 401:
            message = f"{message}; set ${_KEY_VARIABLE}"
        if reply.status_code == 503:
            return NotReady(f"{self._base}: {message}", retry_after=float(reply.headers.get("retry-after", 1)))
        return RequestError(f"{self._base}: {message}")


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data and data != "[DONE]":
            yield json.loads(data)
