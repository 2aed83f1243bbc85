"""Korean particles, which depend on the last sound of the word before them."""

from __future__ import annotations

_CLOSED_DIGITS, _CLOSED_LATIN = "013678", "lmnrLMNR"


def _closed(word: str) -> bool:
    last = word.rstrip("'\")`")[-1:] or "가"
    if "가" <= last <= "힣":
        return (ord(last) - ord("가")) % 28 != 0
    return last in _CLOSED_DIGITS or last in _CLOSED_LATIN


def neun(word: str) -> str:
    """The topic: 은 or 는."""
    return word + ("은" if _closed(word) else "는")


def ga(word: str) -> str:
    """The subject: 이 or 가."""
    return word + ("이" if _closed(word) else "가")


def reul(word: str) -> str:
    """The object: 을 or 를."""
    return word + ("을" if _closed(word) else "를")


def counted(word: str) -> str:
    """And: 과 or 와."""
    return word + ("과" if _closed(word) else "와")


def ida(word: str) -> str:
    """To be, before a noun: 인."""
    return word + "인"


def ro(word: str) -> str:
    """By or to: 으로 or 로."""
    last = word.rstrip("'\")`")[-1:]
    closed = _closed(word) and not ("가" <= last <= "힣" and (ord(last) - ord("가")) % 28 == 8)
    return word + ("으로" if closed else "로")
