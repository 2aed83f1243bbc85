"""The server as production has it, on a free port; only the models are scripted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest

from coldstream.serve.http.server import HttpServer
from coldstream.serve.main import bind
from coldstream.serve.state import ServerState
from tests.support.production import Stack, stack
from tests.support.scripted import Script, ScriptedEngine


@dataclass(frozen=True)
class Served:
    """A running server and a client for it; `stack.open()` brings the application of one that was served `early`."""

    state: ServerState
    client: httpx2.AsyncClient
    url: str
    stack: Stack


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
def engine() -> Iterator[Callable[..., ScriptedEngine]]:
    """Makes scripted engines and stops their threads."""
    engines: list[ScriptedEngine] = []

    def make(script: Script | str = "hello", *, manual: bool = False) -> ScriptedEngine:
        chosen = (lambda request: list(script)) if isinstance(script, str) else script
        engines.append(ScriptedEngine(chosen, manual=manual))
        return engines[-1]

    yield make
    for item in engines:
        item.close()


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serves what `stack` takes over a real socket; `http`: the server's options; `early`: without its application."""
    running: list[tuple[HttpServer, asyncio.Task[None], httpx2.AsyncClient, socket.socket, ServerState]] = []

    async def start(*arguments: Any, early: bool = False, http: dict[str, Any] | None = None, **options: Any) -> Served:
        made = stack(*arguments, **options)
        listener = bind("127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = HttpServer(made.surface, listener, refused=made.surface.refused, hanging_up=2, **(http or {}))
        task = asyncio.create_task(server.serve())
        client = httpx2.AsyncClient(base_url=url, timeout=10, verify=False)  # certificates take time to read
        running.append((server, task, client, listener, made.state))
        if not early:
            made.open()
        return Served(made.state, client, url, made)

    yield start
    for server, task, client, listener, state in running:
        await client.aclose()
        server.should_exit = True
        await task
        listener.close()
        await asyncio.to_thread(state.workers.close)


@pytest.fixture
async def client() -> AsyncIterator[Callable[..., openai.AsyncOpenAI]]:
    """OpenAI's own package, asking a server."""
    clients: list[openai.AsyncOpenAI] = []

    def make(served: Served, key: str = "none") -> openai.AsyncOpenAI:
        http = openai.DefaultAsyncHttpxClient(verify=False)
        clients.append(openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0, http_client=http))
        return clients[-1]

    yield make
    for item in clients:
        await item.close()
