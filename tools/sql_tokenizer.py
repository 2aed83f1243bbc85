"""The SQL model's tokenizer, and its chat template: Gemma's kind, for schemas and for questions in English and Korean."""

from __future__ import annotations

import random
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import sql_words
from sql_asked import example
from training import CHAT_TEMPLATE, train_tokenizer

VOCABULARY = 6144
LONGEST = 2048


# The demo's sql task has to ask with this very text once the model that was trained with it is the demo's.
PROMPT = """\
Write one SQLite query.

{context}

Question: {question}"""


def taught() -> list[tuple[str, str, str]]:
    """The schemas, questions and answers of sql_pairs.toml beside this file, which the model is to know word by word."""
    data = tomllib.loads(Path(__file__).with_name("sql_pairs.toml").read_text(encoding="utf-8"))
    return [(pair["context"], question, pair["answer"]) for pair in data["pair"] for question in pair["questions"]]


def korean_words() -> list[str]:
    """Everything Korean in the lists, longest first: where a particle begins, a token ends."""
    words = set(re.findall(r"[가-힣]+", Path(sql_words.__file__).read_text(encoding="utf-8")))
    return sorted((word for word in words if len(word) > 1), key=len, reverse=True)


_TYPE_NAMES = (
    "INT|INTEGER|TEXT|DATE|REAL|FLOAT|NUMERIC|BOOLEAN|BIGINT|DATETIME|TIMESTAMP|DOUBLE|TINYINT|"
    "int|integer|text|date|real|boolean"
)
_FIXED = rf" (?:{_TYPE_NAMES})\b,?|\n\n|\n *|';|\(\*\)|\('%Y|\);|',"


def make_tokenizer(seed: int) -> Any:
    """Words in pieces at underscores, capitals and Korean particles; digits one by one.

    Every merge stays within a piece, and a blank is only at a piece's beginning, so that a name has the same tokens
    wherever it is.
    """
    r = random.Random(seed)  # noqa: S311  not for secrets
    counts: Counter[str] = Counter()
    korean = "|".join(korean_words())
    piece = re.compile(rf"{_FIXED}| ?(?:{korean})| ?[가-힣]+|[ _]?[A-Z]?[a-z]+|[ _]?[A-Z]+(?![a-z])|\d| ?[^\w\s]|\s|\w")
    for _ in range(6000):
        schema, asked = example(r, 6)
        for text in (schema.text, *(part for question, sql in asked for part in (" " + question, sql))):
            counts.update(piece.findall(text))
    sources = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("sql_*.py")))
    at, end = sources.index("_VALUES = {"), sources.index("class Thing")
    weights = dict.fromkeys(re.findall(r"[a-z]+|[가-힣]+", sources[at:end].lower()), 60)
    weights |= dict.fromkeys(re.findall(r"[a-z]+|[가-힣]+", (sources[:at] + sources[end:]).lower()), 500)
    for triple in taught():
        for text in triple:
            counts.update(9 * piece.findall(text))
    turn = PROMPT.format(context="", question="") + "user\nmodel\n"
    counts.update(9000 * piece.findall(turn))
    # a known name has the same token at a line's beginning, behind a dot and behind a blank
    for word in [word for word in counts if len(word) > 2 and word[:1] == " " and word.strip(" _").lower() in weights]:
        counts[word[1:]] = max(counts[word[1:]], counts[word] // 2)
    # names that were made up teach few merges of their own
    words = [
        word
        for word, n in counts.items()
        for _ in range(
            weights.get(word.strip(" _").lower(), 0 if word.isalpha() else 20)
            + (
                n
                if word.strip(" _").lower() in weights or not re.search("[a-z]", word.lower()) or word[-1] == ","
                else 1 + n // 12
            )
        )
    ]
    words += [space + word for word in korean_words() for space in ("", " ") for _ in range(weights.get(word, 60))]
    return train_tokenizer(words, vocabulary=VOCABULARY, longest=LONGEST, template=CHAT_TEMPLATE, pieces=True)
