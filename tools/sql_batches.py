"""Training batches of the SQL model: schemas, and behind each its questions with their answers, without padding."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch
from torch import Tensor

import training
from sql_asked import example
from sql_model import Places
from sql_tokenizer import PROMPT, taught
from training import SPECIAL

Row = tuple[list[int], list[tuple[list[int], list[int]]]]
"""A schema's ids, and those of each question and of its answer."""
QUESTIONS = 8
POOL = 64
LONGEST_SCHEMA = 260
SHARED = 0.05
"""How often a schema is one of sql_pairs.toml."""


class Packed:
    """Schemas with their questions as token ids: one row a schema, its questions behind it, which do not see each other."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self.tokenizer, self.r = tokenizer, random.Random(seed)  # noqa: S311
        self.head, self.between, self.tail = self._parts()
        self.waiting: list[list[Row]] = []
        pairs: dict[str, list[tuple[str, str]]] = {}
        for schema, question, answer in taught():
            pairs.setdefault(schema, []).append((question, answer))
        self.pairs = list(pairs.items())

    def _parts(self) -> tuple[str, str, str]:
        text = PROMPT.format(context="\x00", question="\x01")
        whole = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        head, rest = whole.split("\x00")
        between, tail = rest.split("\x01")
        return head, between, tail

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def row(self, questions: int, *, easy: bool) -> Row:
        """A schema's ids, and those of each question and of its answer."""
        if self.r.random() < SHARED:
            text, asked = self.r.choice(self.pairs)
            asked = self.r.sample(asked, min(len(asked), 3))
            text = self.r.choice(
                (text, text, text + "\n", text.replace("; ", ";\n"), text.removesuffix(";"), " " + text)
            )
        else:
            schema, asked = example(self.r, questions, easy=easy)
            text = schema.text
        end = SPECIAL.index(training.END)
        prompts = [self.head + text + self.between + question + self.tail for question, _ in asked]
        encode = self.tokenizer.backend_tokenizer.encode_batch
        wholes = [one.ids for one in encode(prompts, add_special_tokens=False)]
        answers = [[*one.ids, end] for one in encode([sql for _, sql in asked], add_special_tokens=False)]
        same = shared([self.ids(self.head + text + self.between), *wholes])
        return wholes[0][:same], [(whole[same:], answer) for whole, answer in zip(wholes, answers, strict=True)]

    def batch(self, tokens: int, *, easy: bool) -> Batch:
        """About so many tokens."""
        if not self.waiting:
            pool: list[Row] = []
            while len(pool) < POOL:
                schema, asked = self.row(4 if easy else QUESTIONS, easy=easy)
                if len(schema) < LONGEST_SCHEMA:
                    pool.append((schema, asked))
            # rows of like lengths together: little is padding
            pool.sort(key=length)
            lot: list[Row] = []
            for one in pool:
                if lot and (len(lot) + 1) * length(one) > tokens:
                    self.waiting.append(lot)
                    lot = []
                lot.append(one)
            self.waiting.append(lot)
            self.r.shuffle(self.waiting)
        rows = self.waiting.pop()
        return flat(rows)


def shared(lists: list[list[int]]) -> int:
    """How many ids all of them begin with."""
    return next((n for n, ids in enumerate(zip(*lists, strict=False)) if len(set(ids)) > 1), min(map(len, lists)))


class Batch(NamedTuple):
    """A flat batch: ids and positions `[tokens]`, where they are, which of them say a token of an answer, and which."""

    ids: Tensor
    positions: Tensor
    places: Places
    speaking: Tensor
    labels: Tensor


def flat(rows: list[Row]) -> Batch:
    """Rows as one batch without padding; where a row has fewer questions than another, the rest of its places are empty."""
    many = max(len(asked) for _, asked in rows)
    wide, long = max(len(schema) for schema, _ in rows), max(len(q) + len(a) for _, asked in rows for q, a in asked)
    ids: list[int] = []
    positions: list[int] = []
    speaking: list[int] = []
    labels: list[int] = []
    schemas = torch.zeros(len(rows), wide, dtype=torch.long)
    questions = torch.zeros(len(rows) * many, long, dtype=torch.long)
    back: list[int] = []
    mask = torch.zeros(len(rows) * many, 1, long, wide + long, dtype=torch.bool)
    mask[:, 0, :, wide:] = torch.ones(long, long, dtype=torch.bool).tril()
    for row, (schema, asked) in enumerate(rows):
        k = len(schema)
        schemas[row, :k] = torch.arange(len(ids), len(ids) + k)
        back += range(row * wide, row * wide + k)
        ids += schema
        positions += range(k)
        mask[row * many : (row + 1) * many, 0, :, :k] = True
        for number, (q, a) in enumerate(asked):
            m, place = len(q) + len(a), row * many + number
            questions[place, :m] = torch.arange(len(ids), len(ids) + m)
            back += range(len(rows) * wide + place * long, len(rows) * wide + place * long + m)
            speaking += range(len(ids) + len(q) - 1, len(ids) + m - 1)
            labels += a
            ids += q + a
            positions += range(k, k + m)
    places = Places(schemas, questions, many, torch.tensor(back), mask)
    return Batch(torch.tensor(ids), torch.tensor(positions), places, torch.tensor(speaking), torch.tensor(labels))


def length(row: Row) -> int:
    """A row's tokens."""
    return len(row[0]) + sum(len(q) + len(a) for q, a in row[1])
