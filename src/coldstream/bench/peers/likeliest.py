"""The best of one row of logits."""

from __future__ import annotations

from typing import Any

import numpy as np


def likeliest(logits: Any, count: int) -> list[tuple[int, float]]:
    """The `count` best of `[vocab]` with their log probabilities, best first."""
    row = np.asarray(logits, np.float64)
    top = row.max()
    total = top + np.log(np.exp(row - top).sum())
    ids = np.argsort(-row, kind="stable")[:count]
    return [(int(token), float(row[token] - total)) for token in ids]
