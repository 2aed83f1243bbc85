"""Reports, plans and states for people, on a rich console; data goes through --json instead."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from coldstream.deploy import plan_report
from coldstream.deploy.apply import STEPS, Deployed
from coldstream.deploy.doctor import Report
from coldstream.deploy.plan import Plan
from coldstream.deploy.service import Change
from coldstream.deploy.steps import Event, Tell
from coldstream.deploy.target import Target

_COLOURS = {"yes": "green", "warning": "cyan", "no": "red", "unknown": "yellow"}


def report(console: Console, found: Report, *, everything: bool) -> None:
    """The checks that need attention with their mends, and a count of the rest; or all of them."""
    table = Table("step", "question", "answer", "evidence", "what mends it", box=None, pad_edge=False)
    for check in found.checks:
        if check.met and not everything:
            continue
        answer = f"[{_COLOURS[check.answer]}]{check.answer}[/]"
        mend = "" if check.mend is None else str(check.mend)
        table.add_row(escape(check.step), escape(check.question), answer, escape(check.evidence), escape(mend))
    if table.row_count:
        console.print(table)
    counts = {answer: sum(1 for check in found.checks if check.answer == answer) for answer in _COLOURS}
    told = ", ".join(f"{count} {answer}" for answer, count in counts.items() if count or answer in ("no", "unknown"))
    console.print(f"{len(found.checks)} checks: {told}")
    if found.exit_code:
        console.print("`coldstream doctor --fix` grants what is missing, or writes the commands for whoever may")


def plan(console: Console, made: Plan) -> None:
    """The plan, and what it would change."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, text in plan_report.lines(made):
        table.add_row(f"[bold]{escape(name)}[/]", escape(text))
    console.print(table)
    changes(console, made.changes, new=made.deployed is None)


def changes(console: Console, found: tuple[Change, ...], *, new: bool) -> None:
    """A diff; of a new service only that it is new."""
    if new:
        console.print("the service is not deployed yet")
    elif not found:
        console.print("nothing would change")
    for change in () if new else found:
        before, after = escape(_short(change.before)), escape(_short(change.after))
        console.print(f"  {escape(change.path)}: [red]{before}[/] -> [green]{after}[/]")


def _short(value: Any) -> str:
    text = "-" if value is None else str(value).replace("\n", " ")
    return text if len(text) <= 80 else f"{text[:77]}..."


def event(console: Console, what: Event) -> None:
    """A line of progress."""
    text = escape(what.text)
    if what.mark == "begin":
        console.print(f"[bold]{what.step}[/]")
    elif what.mark == "log":
        console.print(f"  [dim]| {text}[/]")
    elif what.mark == "note":
        console.print(f"  {text}")
    elif what.mark == "failed":
        # What went wrong is the error that the command ends with.
        console.print("  [red]failed[/]")
    else:
        console.print(f"  [green]{_ENDED[what.mark]}[/] {text}".rstrip())


_ENDED = {"done": "done", "kept": "as it should be", "failed": "failed"}


@contextmanager
def progress(console: Console, *, live: bool) -> Iterator[Tell]:
    """Where events go: lines, or one table that lives, with the build's log scrolling above it."""
    if not live or not console.is_terminal:
        yield lambda what: event(console, what)
        return
    rollout = Rollout()
    with Live(rollout.table(), console=console, refresh_per_second=4) as screen:

        def tell(what: Event) -> None:
            rollout.hear(what)
            if what.mark == "log":
                screen.console.print(f"  [dim]| {escape(what.text)}[/]")
            screen.update(rollout.table(), refresh=True)

        yield tell


class Rollout:
    """The steps of a deployment under way: each with its state and the last that was said of it."""

    def __init__(self) -> None:
        self._rows = {name: ("", "") for name, _ in STEPS}

    def hear(self, what: Event) -> None:
        """Take an event in; a log line is not a state."""
        state, said = self._rows[what.step]
        if what.mark == "begin":
            self._rows[what.step] = ("working", "")
        elif what.mark == "note":
            self._rows[what.step] = (state, what.text)
        elif what.mark != "log":
            self._rows[what.step] = (_ENDED[what.mark], what.text or said)

    def table(self) -> Table:
        """The rows as they stand."""
        table = Table("step", "state", "", box=None, pad_edge=False)
        for name, (state, said) in self._rows.items():
            colour = {"working": "yellow", "failed": "red", "": "dim"}.get(state, "green")
            table.add_row(name, f"[{colour}]{state or 'to come'}[/]", escape(_short(said) if said else ""))
        return table


def deployed(console: Console, result: Deployed, target: Target, body: Mapping[str, Any]) -> None:
    """The address and a line to try it with."""
    shares = ", ".join(f"{percent} % {name}" for name, percent in result.shares.items())
    console.print(f"[bold green]{escape(result.url)}[/]  ({shares})")
    console.print(escape(curl(result.url, target, body)), soft_wrap=True)


def curl(url: str, target: Target, body: Mapping[str, Any]) -> str:
    """A shell line that asks the service. `coldstream token` makes what a private one wants, as the smoke test did.

    `gcloud auth print-identity-token --impersonate-service-account` would want more than the deployer was granted: the
    right to make access tokens of the invoker.
    """
    data = json.dumps(dict(body), ensure_ascii=False)
    words = ["curl", "-H", "Content-Type: application/json", "-d", data, f"{url}/generate"]
    line = shlex.join(words)
    keys = ""
    if target.secret is not None:
        secret = shlex.join(["gcloud", "secrets", "versions", "access", "latest", f"--secret={target.secret}"])
        keys = f' -H "Authorization: Bearer $({secret})"'
    if target.public:
        return f"curl{keys}{line.removeprefix('curl')}"
    place = [f"--project={target.project}", f"--region={target.region}", f"--service={target.service}"]
    token = shlex.join(["coldstream", "token", *place])
    header = "X-Serverless-Authorization" if keys else "Authorization"
    return f'curl -H "{header}: Bearer $({token})"{keys}{line.removeprefix("curl")}'


def status(console: Console, state: Mapping[str, Any]) -> None:
    """The service and its revisions."""
    console.print(
        f"{state['service']}\n{state['url']}  ({state['access']}, at least {state['min_instances']} instances)"
    )
    table = Table("revision", "traffic", "state", "machine", "at most", "model", "made", box=None, pad_edge=False)
    for item in state["revisions"]:
        limits = item["limits"]
        machine = f"{limits.get('cpu', '?')} vCPU, {limits.get('memory', '?')}"
        machine += ", GPU" if limits.get("nvidia.com/gpu") else ""
        traffic = f"{item['percent']} %" + "".join(f" [{tag}]" for tag in item["tags"])
        row = (
            item["name"],
            traffic,
            item["state"],
            machine,
            str(item["max_instances"]),
            item["model"],
            str(item["made"])[:19],
        )
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)
    for item in state["revisions"]:
        if item["message"] and item["state"] != "succeeded":
            console.print(escape(f"{item['name']}: {item['message']}"))


def listed(console: Console, head: str, items: Iterable[object]) -> None:
    """A heading with one line an item."""
    console.print(f"[bold]{escape(head)}[/]")
    for item in items:
        console.print(f"  {escape(str(item))}")
