"""The package's face: light to import, and what is missing says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

import coldstream

MAY_BE_IMPORTED = {"coldstream", "typing"}
"""With nothing else it is imported as quickly as Python's own modules are."""


def ran(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout


def test_importing_it_imports_nothing_that_it_does_not_use() -> None:
    code = (
        "import sys; before = set(sys.modules); import coldstream; coldstream.__all__; dir(coldstream)\n"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    assert set(ran(code).split()) - MAY_BE_IMPORTED == set()


@pytest.mark.parametrize(
    ("missing", "name"),
    [
        ("torch", "from_pretrained"),
        ("torch", "load_state_dict"),
        ("torch", "iter_tensors"),
    ],
)
def test_what_needs_an_extra_says_which_to_install(missing: str, name: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\nimport coldstream\nfrom coldstream.errors import MissingExtra\n"
        f"try:\n    coldstream.{name}\nexcept MissingExtra as exc:\n    print(exc)"
    )
    assert f"coldstream.{name} needs {missing}; run: pip install 'coldstream[{missing}]'" in ran(code)


def test_its_version_is_the_package_s_and_every_name_is_there() -> None:
    from importlib.metadata import version

    assert coldstream.__version__ == version("coldstream")
    assert all(hasattr(coldstream, name) for name in coldstream.__all__)
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = coldstream.nonesuch
