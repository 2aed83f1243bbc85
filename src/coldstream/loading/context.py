"""What a load stands in: what several loads of a process share, and what their owner looks at meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from coldstream.loading.state import LoadState
from coldstream.loading.threads import LoaderThreads
from coldstream.loading.torch_import import TorchImport
from coldstream.loading.turns import Turns
from coldstream.settings import Settings
from coldstream.timeline import Timeline
from coldstream.workers.workers import Workers


@dataclass(frozen=True, slots=True)
class LoadContext:
    """`torch`, `turns`, `workers` and `timeline` may be shared; `state` and `threads` are one load's own."""

    state: LoadState
    threads: LoaderThreads
    torch: TorchImport
    turns: Turns
    timeline: Timeline
    workers: Workers

    @classmethod
    def of_one(cls, name: str, settings: Settings) -> LoadContext:
        """For a load that shares nothing."""
        timeline = Timeline()
        threads = LoaderThreads(name, kernel_name="load")
        torch = TorchImport(settings.engine.threads, timeline)
        return cls(LoadState(timeline), threads, torch, Turns(), timeline, Workers())
