"""What a server's answers are worth: the KL divergence of its next token from float32's.

    asked = read_positions("gs://bucket/model", count=96)
    found = measure(endpoint, asked)

A server over HTTP names its best tokens alone. So the distribution that is compared has those, each by itself, and all
others as one: never more than the whole divergence, and the same for every server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np

from coldstream.backends.cpu.address import Floats
from coldstream.bench.quality import distributions, filled, read_texts, read_tokenizer
from coldstream.bench.serve_load import Endpoint
from coldstream.engine.tokenizer.library import bytes_of, spell_of
from coldstream.engine.tokenizer.vocabulary import decoder_of
from coldstream.errors import SettingsError
from coldstream.weights.checkpoint.checkpoint import open_checkpoint

BEST = 20
"""Tokens that a server names."""
_TOKENS = 256
_LEAST = 1e-7
"""Of the mass of all others, which float32 may round to nothing or less."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a text: the ids before it, and float32's probabilities of what comes, `[vocab]`."""

    prompt: tuple[int, ...]
    probabilities: Floats


@dataclass(frozen=True, slots=True)
class Positions:
    """What every server is asked; `ids` are those that a text of a token stands for."""

    places: tuple[Position, ...]
    ids: Mapping[bytes, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class ServedQuality:
    """Nats a token over the best 20 and the rest as one; how often the best token is float32's."""

    positions: int
    mean_kl: float
    top1_agreement: float


def read_positions(uri: str, *, count: int, texts: Mapping[str, str] | None = None) -> Positions:
    """So many places, evenly spread over the first 256 tokens of each text, computed in float32 in this process.

    Raises what streaming and assembling raise, and TokenizerError where there is no tokenizer.json.
    """
    checkpoint = open_checkpoint(uri)
    tokenizer = read_tokenizer(checkpoint)
    chosen = texts or read_texts()
    reference = filled(checkpoint, uri, "float32")
    places: list[Position] = []
    for text in chosen.values():
        ids = tokenizer.encode(text).ids[:_TOKENS]
        wanted = set(np.linspace(1, len(ids) - 2, max(1, count // len(chosen))).astype(int).tolist())
        begin = 0
        for some in distributions(reference, ids):
            places += [
                Position(tuple(ids[: begin + row + 1]), np.exp(some[row]))
                for row in range(len(some))
                if begin + row in wanted
            ]
            begin += len(some)
    return Positions(tuple(places), _ids_by_text(tokenizer))


def measure(endpoint: Endpoint, asked: Positions) -> ServedQuality:
    """Ask for one token behind each place, with the best alternatives.

    Raises:
        SettingsError: the endpoint does not give them.
    """
    kl, same = [], []
    with httpx2.Client(timeout=600.0, trust_env=False) as http:
        for place in asked.places:
            best = _best(_answer(http, endpoint, place.prompt), asked.ids)
            kl.append(divergence(place.probabilities, best))
            same.append(int(place.probabilities.argmax()) in best[0][0])
    return ServedQuality(len(kl), float(np.mean(kl)), float(np.mean(same)))


def divergence(expected: Floats, best: Sequence[tuple[tuple[int, ...], float]]) -> float:
    """KL in nats of `expected [vocab]` from a distribution of which some are known: ids that are one, with their log
    probability. All others count as one."""
    total, left, left_here = 0.0, 1.0, 1.0
    for ids, logprob in best:
        p = float(expected[list(ids)].sum(dtype=np.float64))
        total += p * (math.log(p) - logprob) if p > 0 else 0.0
        left, left_here = left - p, left_here - math.exp(logprob)
    left, left_here = max(left, _LEAST), max(left_here, _LEAST)
    return total + left * math.log(left / left_here)


def _answer(http: httpx2.Client, endpoint: Endpoint, prompt: Sequence[int]) -> dict[str, Any]:
    limits = {"max_tokens": 1, "temperature": 0.0, "logprobs": BEST}
    body = {"model": endpoint.model, "prompt": list(prompt), **limits, **endpoint.extra}
    headers = {"authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    try:
        reply = http.post(f"{endpoint.url.rstrip('/')}/completions", json=body, headers=headers)
    except httpx2.HTTPError as exc:
        raise SettingsError(f"no log probabilities: {type(exc).__name__}: {exc}") from exc
    if reply.status_code != 200:
        raise SettingsError(f"no log probabilities: HTTP {reply.status_code}: {reply.text[:200]}")
    found = reply.json()["choices"][0].get("logprobs")
    if not isinstance(found, dict):
        raise SettingsError("no log probabilities: the answer has none")
    return found


def _best(found: Mapping[str, Any], ids: Mapping[bytes, tuple[int, ...]]) -> list[tuple[tuple[int, ...], float]]:
    """Of either shape that servers give: `content`, by ids or bytes, or `top_logprobs`, by texts; best first."""
    if found.get("content"):
        named = [(_known(item, ids), item["logprob"]) for item in found["content"][0]["top_logprobs"]]
    elif found.get("top_logprobs"):
        named = [(_known({"token": text}, ids), value) for text, value in found["top_logprobs"][0].items()]
    else:
        raise SettingsError("no log probabilities: the answer names no alternatives")
    known = {key: float(value) for key, value in reversed(named) if key}
    if not known:
        raise SettingsError("no log probabilities: none of the tokens named is one of this model's")
    return sorted(known.items(), key=lambda item: -item[1])


def _known(item: Mapping[str, Any], ids: Mapping[bytes, tuple[int, ...]]) -> tuple[int, ...]:
    """The ids of a token that was named; empty where it is not in the vocabulary: it counts among the others then."""
    if "id" in item:
        return (int(item["id"]),)
    return ids.get(bytes(item["bytes"]) if item.get("bytes") else spelled(item["token"]), ())


def spelled(name: str) -> bytes:
    r"""A token's bytes by its name in a completion: a part of a character is written `bytes:\xea`."""
    if name.startswith("bytes:\\x"):
        return bytes.fromhex(name.removeprefix("bytes:").replace("\\x", ""))
    return name.encode()


def _ids_by_text(tokenizer: Any) -> Mapping[bytes, tuple[int, ...]]:
    added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    spell = spell_of(decoder_of(tokenizer))
    found: dict[bytes, tuple[int, ...]] = {}
    for name, number in tokenizer.get_vocab().items():
        text = bytes_of(name, added, spell)
        if text is not None:
            found[text] = (*found.get(text, ()), number)
    return found
