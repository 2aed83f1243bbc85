"""A real uvicorn on a free port around an application with scripted models."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import openai
import pytest
import uvicorn

from coldstream.serve.app import create_app
from coldstream.serve.keys import ApiKeys
from coldstream.serve.state import ServedModel, ServerState
from coldstream.serve.tracing import Tracing
from coldstream.settings import Settings, for_uri
from tests.serve.scripted import Script, ScriptedEngine


@dataclass(frozen=True)
class Served:
    """A running server and a client for it."""

    state: ServerState
    client: httpx2.AsyncClient
    url: str


class Announced(uvicorn.Server):
    """Says when it listens, and leaves the test's signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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
    """Serves models over a real socket."""
    running: list[tuple[uvicorn.Server, asyncio.Task[None], httpx2.AsyncClient]] = []

    async def start(
        models: ServedModel | Mapping[str, ServedModel],
        settings: Settings | None = None,
        keys: ApiKeys | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        tracing: Tracing | None = None,
    ) -> Served:
        named = models if isinstance(models, Mapping) else {models.name: models}
        state = ServerState(settings or for_uri("gs://bucket/default"), named, keys or ApiKeys())
        config = uvicorn.Config(
            create_app(state, environ=environ or {}, tracing=tracing), port=0, log_config=None, lifespan="off"
        )
        server = Announced(config)
        task = asyncio.create_task(server.serve())
        await asyncio.wait({task, asyncio.ensure_future(server.up.wait())}, return_when=asyncio.FIRST_COMPLETED)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        client = httpx2.AsyncClient(base_url=url, timeout=10)
        running.append((server, task, client))
        return Served(state, client, url)

    yield start
    for server, task, client in running:
        await client.aclose()
        server.should_exit = True
        await task


@pytest.fixture
async def client() -> AsyncIterator[Callable[..., openai.AsyncOpenAI]]:
    """OpenAI's own package, asking a server."""
    clients: list[openai.AsyncOpenAI] = []

    def make(served: Served, key: str = "none") -> openai.AsyncOpenAI:
        clients.append(openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0))
        return clients[-1]

    yield make
    for item in clients:
        await item.close()
