"""`coldstream demo`: everything above, on a bucket of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from coldstream.demo.questions import DemoAnswer, DemoQuestion
    from coldstream.demo.run import DemoReport


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    check: Annotated[
        bool, typer.Option("--check", help="Stop after the questions: 0 when every answer is as expected, else 1.")
    ] = False,
    port: Annotated[int | None, typer.Option(help="Port of the server; 0 chooses a free one. [default: 8080]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: one object when all is answered.")] = False,
) -> None:
    """Serve two real models from a local bucket, ask each task a question, and go on serving until Ctrl-C.

    The larger model is converted once and kept in $COLDSTREAM_DEMO_DIR (default ~/.cache/coldstream/demo).
    """
    from coldstream.demo.run import run
    from coldstream.timeline import Timeline

    clock = Timeline()
    audience = MachineReport() if as_json else Terminal()
    try:
        ok = run(cache=cache_folder(os.environ), port=port, check=check, audience=audience, timeline=clock)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        audience.close()
    if check and not ok:
        raise typer.Exit(1)


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where the converted model is kept."""
    chosen = environ.get("COLDSTREAM_DEMO_DIR")
    if chosen:
        return Path(chosen).expanduser()
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "coldstream" / "demo"


class Terminal:
    """Tells a person: what is done and when, bars while bytes land, then questions and answers."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        from coldstream.cli.terminal import PrintableConsole

        self._console = PrintableConsole(highlight=False)
        columns = (TextColumn("          {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bars = Progress(*columns, TextColumn("{task.fields[phase]}"), console=self._console, transient=True)
        self._tasks: dict[str, Any] = {}

    def stage(self, text: str, seconds: float) -> None:
        self.close()
        self._console.print(f"[dim]{seconds:6.1f} s[/]  ", end="")
        self._console.print(text, markup=False, soft_wrap=True)

    def loading(self, state: Mapping[str, Any]) -> None:
        if not self._console.is_terminal:
            return
        self._bars.start()
        for name, model in state.get("models", {}).items():
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=None, phase="")
            total = model["total_bytes"] or None
            self._bars.update(self._tasks[name], completed=model["bytes"], total=total, phase=model["phase"])

    def answered(self, question: DemoQuestion, answer: DemoAnswer, fault: str | None, url: str) -> None:
        print_ = self._console.print
        print_()
        print_(f"[bold]{question.body['type']}[/]  ", end="")
        print_(question.text, style="bold cyan", markup=False, soft_wrap=True)
        print_(answer.text, markup=False, soft_wrap=True)
        usage = answer.details.get("usage", {})
        ended = f"{usage.get('completion_tokens')} tokens, finish_reason {answer.details.get('finish_reason')}"
        print_(f"[dim]{answer.seconds:.2f} s, {ended}[/]")
        if fault is not None:
            print_(f"wrong: {fault}", style="bold red", markup=False, soft_wrap=True)
        elif question.is_known:
            print_("as expected: the demo has this answer stored", style="dim", markup=False)
        print_(question.curl(url), style="green", markup=False, soft_wrap=True)

    def finished(self, report: DemoReport, *, serving: bool) -> None:
        first, ready = report.seconds["first_answer"], report.seconds["ready"]
        self._console.print(f"\nReady {ready:.1f} s after exec, first answer after {first:.1f} s.")
        for wrong in report.faults:
            self._console.print(f"wrong: {wrong}", style="bold red", markup=False, soft_wrap=True)
        if report.ok:
            self._console.print("Where the demo knows an answer, it came as expected.")
        if serving:
            self._console.print(f"The server stays at [bold]{report.url}[/] until Ctrl-C; {report.url}/startup.svg")

    def close(self) -> None:
        if self._bars.live.is_started:
            self._bars.stop()


class MachineReport:
    """Tells a program: one JSON object on stdout."""

    def __init__(self) -> None:
        self._answers: list[dict[str, Any]] = []

    def stage(self, text: str, seconds: float) -> None:
        pass

    def loading(self, state: Mapping[str, Any]) -> None:
        pass

    def answered(self, question: DemoQuestion, answer: DemoAnswer, fault: str | None, url: str) -> None:
        self._answers.append(
            {
                "request": dict(question.body),
                "answer": answer.text,
                "seconds": round(answer.seconds, 3),
                "finish_reason": answer.details.get("finish_reason"),
                "usage": answer.details.get("usage"),
                "ok": fault is None,
                "fault": fault,
                "curl": question.curl(url),
            }
        )

    def finished(self, report: DemoReport, *, serving: bool) -> None:
        import json

        seconds = {name: round(value, 3) for name, value in report.seconds.items()}
        whole = {"url": report.url, "ok": report.ok, "seconds": seconds, "questions": self._answers}
        typer.echo(json.dumps(whole, ensure_ascii=False, indent=2))

    def close(self) -> None:
        pass
