"""What a run prints, how long it may take, and which of its sections failed."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class BenchReport:
    """Prints as it goes, since a job may be ended at any moment. `limit`: seconds until no section is begun."""

    limit: float
    began: float = field(default_factory=time.monotonic)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """One line, at once."""
        print(f"  {text}", flush=True)

    def judge(self, text: str, good: bool) -> None:
        """A line with what it means; a bad one fails the run."""
        self.say(f"{'ok  ' if good else 'FAIL'} {text}")
        if not good:
            self.failed.append(text)

    def section(self, title: str, work: Callable[[], None]) -> None:
        """Run it, unless the time is over; what it raises fails the run and does not end it."""
        elapsed = time.monotonic() - self.began
        if elapsed > self.limit:
            self.skipped.append(title)
            print(f"== {title}: skipped, {elapsed:.0f} s are gone", flush=True)
            return
        print(f"== {title} ({elapsed:.0f} s)", flush=True)
        try:
            work()
        except Exception as exc:  # the sections behind it are worth having all the same
            traceback.print_exc()
            self.failed.append(f"{title}: {exc}")

    def end(self) -> int:
        """The last lines; the exit code."""
        print(f"== {time.monotonic() - self.began:.0f} s; skipped: {', '.join(self.skipped) or 'nothing'}")
        for text in self.failed:
            print(f"FAILED {text}")
        print("green" if not self.failed and not self.skipped else "not green", flush=True)
        return 1 if self.failed else 0
