"""How far a stream is, in one line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coldstream.weights.transfer.progress import Progress


def show_bytes(progress: Progress) -> None:
    """On stderr, each line over the one before."""
    done, total, rate = (number / 1e9 for number in (progress.landed_bytes, progress.total_bytes, progress.rate))
    sys.stderr.write(f"\r{progress.fraction:4.0%}  {done:.2f} of {total:.2f} GB  {rate:.2f} GB/s ")
    if progress.phase == "done":
        sys.stderr.write("\n")
    sys.stderr.flush()
