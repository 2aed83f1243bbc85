"""The numbers in a question: digits, words, and what Korean counts in (three 만 are 30000). Pure."""

from __future__ import annotations

import re

_TIMES = {
    "천": 10**3,
    "만": 10**4,
    "십만": 10**5,
    "백만": 10**6,
    "천만": 10**7,
    "억": 10**8,
    "k": 10**3,
    "million": 10**6,
}
_DIGITS = re.compile(r"(\d[\d,]*(?:\.\d+)?)\s*(십만|백만|천만|억|만|천|million\b|k\b)?")
_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_ROUND = {"once": 1, "twice": 2, "dozen": 12, "thirty": 30, "forty": 40, "fifty": 50, "hundred": 100, "thousand": 1000}
_SPOKEN = {word: number for number, word in enumerate(_WORDS)} | _ROUND | {"million": 10**6}
_KOREAN = ("하나 한", "둘 두", "셋 세", "넷 네", "다섯", "여섯", "일곱", "여덟", "아홉", "열")
_KOREAN_NUMBERS = {word: number for number, words in enumerate(_KOREAN, 1) for word in words.split()} | {"스무": 20}
_MOST = 40


def numbers_in(question: str) -> list[str]:
    """As SQL writes them, each once, 40 at most; 0 and 1 are always among them."""
    found = ["0", "1"]
    for digits, unit in _DIGITS.findall(question[:10_000]):
        plain = digits.replace(",", "")[:18]
        found.append(plain)
        if unit:
            found.append(f"{float(plain) * _TIMES[unit]:.0f}")
    found += [str(_SPOKEN[word]) for word in re.findall("[a-z]+", question.lower()) if word in _SPOKEN]
    for word, number in _KOREAN_NUMBERS.items():
        if re.search(rf"(?<![가-힣]){word} ?[가-힣]", question):
            found.append(str(number))
    return list(dict.fromkeys(found))[:_MOST]
