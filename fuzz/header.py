"""Any bytes are a valid safetensors header or a HeaderError.

By hand: pip install atheris; python fuzz/header.py CORPUS
"""

from __future__ import annotations

import contextlib
import sys

import atheris

with atheris.instrument_imports():
    from coldstream.errors import HeaderError
    from coldstream.weights.header import parse_header


def one(data: bytes) -> None:
    """Both as a whole file and as the JSON of one."""
    for raw in (data, len(data).to_bytes(8, "little") + data):
        with contextlib.suppress(HeaderError):
            parse_header(raw, file="f", size=len(raw), uri="gs://b/f")


atheris.Setup(sys.argv, one)
atheris.Fuzz()
