"""The error tree: what a caller and a shell can rely on."""

from __future__ import annotations

import inspect

from coldstream import errors
from coldstream.errors import ColdstreamError

CLASSES = [item for item in vars(errors).values() if inspect.isclass(item) and issubclass(item, ColdstreamError)]


def test_every_error_has_an_exit_code_of_its_own() -> None:
    codes = [item.exit_code for item in CLASSES]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 126 for code in codes)


def test_no_exit_code_collides_with_the_shells_usage_error() -> None:
    assert 2 not in {item.exit_code for item in CLASSES}


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    assert errors.__doc__ is not None
    drawn = {}
    for line in errors.__doc__.splitlines():
        words = line.lstrip(" │├└─").split()
        if len(words) >= 3 and words[1].isdecimal() and words[2].isdecimal():
            drawn[words[0]] = (int(words[1]), int(words[2]))
    assert drawn == {item.__name__: (item.http_status, item.exit_code) for item in CLASSES}
