"""The stack as `coldstream.serve.main` composes it, around scripted models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coldstream.serve.app import create_app
from coldstream.serve.health import StartView
from coldstream.serve.middleware.auth import ApiKeys
from coldstream.serve.observe.metrics import Metrics
from coldstream.serve.observe.tracing import Tracing
from coldstream.serve.state import ServerState
from coldstream.serve.surface import Surface
from coldstream.settings import Settings, for_uri
from tests.support.scripted import ScriptedModel, ScriptedStart


@dataclass(frozen=True)
class Stack:
    """A surface, and what stands behind it."""

    surface: Surface
    state: ServerState
    metrics: Metrics
    tracing: Tracing | None = None

    def open(self) -> Stack:
        """Bring the application."""
        self.surface.open_to(create_app(self.state, self.metrics), self.tracing)
        return self


def stack(
    models: ScriptedModel | Mapping[str, ScriptedModel],
    settings: Settings | None = None,
    keys: ApiKeys | None = None,
    *,
    start: StartView | None = None,
    environ: Mapping[str, str] | None = None,
    tracing: Tracing | None = None,
) -> Stack:
    """Before its application is there; `open()` brings it."""
    named = models if isinstance(models, Mapping) else {models.name: models}
    state = ServerState(settings or for_uri("gs://bucket/default"), named, keys or ApiKeys())
    metrics = Metrics()
    surface = Surface(start or ScriptedStart(named), state, metrics, environ=environ or {})
    return Stack(surface, state, metrics, tracing)
