"""Which parts of a tokenizer may run in the server's own process: those whose work grows no faster than the text.

A checkpoint's author writes these parts. A replacement may make terabytes of a text, and a pattern may be matched for
ever; where that can be, the tokenizer stays in a process with limits (process.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_GROWTH = 64
"""Times as long as its text what the parts together make of it may be."""
_MOST_PARTS = 32
_AS_LONG = ("Lowercase", "Nmt", "Strip", "StripAccents", "ByteFallback", "Fuse", "Metaspace", "ByteLevel", "CTC")
_WITH_BLANKS = ("WordPiece", "BPEDecoder")
_COMPOSED = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18}
"""Characters that one may become, https://unicode.org/faq/normalization.html."""
_CUTTERS = (
    *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation"),
    *("UnicodeScripts", "Whitespace", "WhitespaceSplit"),
)
_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
)
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = frozenset(
    {
        _CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _BLANKS,  # Llama 3
        _CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _BLANKS,  # Qwen 2 to 3
        _CASED + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _BLANKS,  # Mistral Nemo
    }
)
"""Patterns that are known to cost no more than a text is long, times a constant."""


def unbounded(parts: Mapping[str, Any]) -> str | None:
    """Why a tokenizer of these parts (tokenizer.json's) has to run where it can be ended; None where it has not."""
    return too_long(parts["normalizer"], "normalizer") or _uncut(parts["pre_tokenizer"]) or too_long(parts["decoder"])


def too_long(part: Any, kind: str = "decoder") -> str | None:
    """Why what a normalizer or a decoder makes of a text may be very much longer than it; None where it is not."""
    growth = 1.0
    steps = _steps(part, f"{kind}s")
    if len(steps) > _MOST_PARTS:
        return f"its {kind} has more than {_MOST_PARTS} parts"
    for step in steps:
        known = _growth(step)
        if known is None:
            return f"its {kind} has a part of type {str(step.get('type'))[:40]!r}, which may make anything of a text"
        growth *= known
    return None if growth <= MOST_GROWTH else f"its {kind} may make a text {growth:.0f} times as long"


def _uncut(part: Any) -> str | None:
    steps = _steps(part, "pretokenizers")
    if len(steps) > _MOST_PARTS:
        return f"its pre-tokenizer has more than {_MOST_PARTS} parts"
    for step in steps:
        if step.get("type") in _CUTTERS:
            continue
        pattern = step.get("pattern")
        known = isinstance(pattern, dict) and ("String" in pattern or pattern.get("Regex") in _PATTERNS)
        if step.get("type") != "Split" or not known:
            return "its pre-tokenizer cuts by a pattern whose cost is not known"
    return None


def _steps(part: Any, name: str) -> list[Mapping[str, Any]]:
    """A part's own parts, in their order."""
    if not isinstance(part, dict):
        return []
    inner = part.get(name)
    if part.get("type") != "Sequence" or not isinstance(inner, list):
        return [part]
    return [step for item in inner[: _MOST_PARTS + 1] for step in _steps(item, name)]


def _growth(step: Mapping[str, Any]) -> float | None:
    kind = step.get("type")
    if kind in _AS_LONG:
        return 1.0
    if kind in _WITH_BLANKS:
        return 2.0
    if kind == "Prepend":
        return 1.0 + len(str(step.get("prepend", "")))
    if kind == "Replace":
        pattern = step.get("pattern")
        string = pattern.get("String") if isinstance(pattern, dict) else None
        content = len(str(step.get("content", "")))
        return max(1.0, content / len(string)) if isinstance(string, str) and string else None
    return _COMPOSED.get(str(kind))
