"""A load as a person wants to see it: one bar a model, then the waterfall and the line to try."""

from __future__ import annotations

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from coldstream.cli.terminal import PrintableConsole
from coldstream.serve.observe.waterfall import text
from coldstream.serve.startup import Startup
from coldstream.settings import Settings

_PERIOD = 0.1


def show(start: Startup, settings: Settings, port: int) -> None:
    """Draw on stderr until the start is over."""
    console = PrintableConsole(stderr=True)
    host = "127.0.0.1" if settings.server.host in ("0.0.0.0", "::") else settings.server.host  # noqa: S104
    console.print(f"Listening on http://{host}:{port} (requests that come now wait for the model)", highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[phase]}"),
    )
    with Progress(*columns, console=console, transient=False) as bars:
        tasks = {name: bars.add_task(name, total=None, phase="waiting") for name in start.models}
        while True:
            settled = start.status != "loading"
            for name, model in start.state()["models"].items():
                bars.update(
                    tasks[name], completed=model["bytes"], total=model["total_bytes"] or None, phase=model["phase"]
                )
            if settled:
                break
            start.wait_for_change(_PERIOD)
    _conclude(console, start, settings, f"http://{host}:{port}")


def _conclude(console: PrintableConsole, start: Startup, settings: Settings, url: str) -> None:
    for line in text(start.timeline.spans(), width=min(console.width, 110)):
        console.print(line, style="dim", highlight=False, markup=False)
    for name, model in start.models.items():
        if model.load.error is not None:
            console.print(f"{name}: {model.load.error}", style="red", markup=False)
        for file in model.load.progress.unverified_files if model.load.progress else ():
            console.print(f"{name}: {file} has no checksum in its store and was not verified", style="yellow")
    if start.status in ("ready", "degraded"):
        task = next(iter(settings.tasks))
        console.print(f"{start.status} after {start.timeline.now():.1f} s. Try:", highlight=False)
        body = f'{{"type": "{task}", "prompt": "Hello!", "max_tokens": 50}}'
        console.print(
            f"  curl {url}/generate -H 'content-type: application/json' -d '{body}'", highlight=False, soft_wrap=True
        )
