"""Any bytes are a valid safetensors header or a HeaderError.

By hand: pip install atheris; mkdir new
PYTHONPATH=src python fuzz/header.py -max_total_time=600 -max_len=400 -dict=fuzz/header.dict new fuzz/corpus
What it finds is in new/; of that, the smallest of each outcome is kept in the corpus, which tests/properties replays.
"""

from __future__ import annotations

import sys


def one(data: bytes) -> None:
    """As a whole file, and as the JSON of one whose size its first byte says.

    Raises:
        AssertionError: a header was accepted whose tensors do not fill the file.
    """
    text = data[1:]
    parse(data, len(data))
    parse(len(text).to_bytes(8, "little") + text, 8 + len(text) + sum(data[:1]))


def parse(raw: bytes, size: int) -> None:
    """Any bytes: an error of ours, or a header whose tensors fill the file without a gap."""
    # Imported here, because atheris instruments what is imported after it was.
    from coldstream.errors import HeaderError
    from coldstream.weights.checkpoint.header import DTYPE_BITS, parse_header

    try:
        header = parse_header(raw, file="f", size=size, uri="gs://b/f")
    except HeaderError:
        return
    position = header.data_start
    for info in header.tensors:
        assert info.start == position
        assert info.nbytes * 8 == info.numel * DTYPE_BITS[info.dtype]
        position = info.end
    assert position == size


def main() -> None:
    """Fuzz until stopped."""
    import atheris

    with atheris.instrument_imports():
        import coldstream.weights.checkpoint.header  # noqa: F401
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
