"""An open file's place, whatever becomes of the names that led to it."""

from __future__ import annotations

import os
from pathlib import Path

from coldstream.host.files import place_of


def test_links_are_followed_and_later_ones_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"1")
    (tmp_path / "other").write_bytes(b"2")
    link = tmp_path / "link"
    link.symlink_to("real")
    descriptor = os.open(link, os.O_RDONLY)
    try:
        link.unlink()
        link.symlink_to("other")
        assert place_of(descriptor) == (tmp_path / "real").resolve()
        (tmp_path / "real").unlink()
        assert place_of(descriptor) is None
    finally:
        os.close(descriptor)
