"""The package's face: light to import, and what is missing says what to install."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import coldstream


def ran(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout


def test_importing_it_imports_nothing_that_it_does_not_use() -> None:
    code = (
        "import __future__, importlib, sys, typing\nbefore = set(sys.modules)\n"
        "import coldstream; coldstream.__all__; dir(coldstream)\nprint(*sorted(set(sys.modules) - before))"
    )
    assert ran(code).split() == ["coldstream"]


@pytest.mark.parametrize(
    ("missing", "call"),
    [
        ("torch", "from_pretrained('gs://nowhere/model')"),
        ("torch", "load_state_dict('gs://nowhere/model')"),
        ("torch", "pipeline('text-generation', 'gs://nowhere/model')"),
        ("transformers", "from_pretrained('gs://nowhere/model')"),
        ("transformers", "tokenizer('gs://nowhere/model')"),
        ("transformers", "processor('gs://nowhere/model')"),
        ("transformers", "pipeline('text-generation', 'gs://nowhere/model')"),
    ],
)
def test_what_needs_an_extra_says_which_to_install_before_it_reads_anything(missing: str, call: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\nimport coldstream\nfrom coldstream.errors import MissingExtra\n"
        f"try:\n    coldstream.{call}\nexcept MissingExtra as exc:\n    print(exc)"
    )
    assert re.search(rf"needs? {missing}; run: pip install 'coldstream\[[\w,]*{missing}", ran(code))


def test_its_version_is_the_package_s_and_every_name_is_there() -> None:
    from importlib.metadata import version

    assert coldstream.__version__ == version("coldstream")
    assert all(hasattr(coldstream, name) for name in coldstream.__all__)
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = coldstream.nonesuch
