"""How a checkpoint will run is said before torch is there, from its headers alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from coldstream.loading.run_plan import plan_run, stored_dtype, text_files, threads_for
from coldstream.settings import ModelSettings
from coldstream.weights.checkpoint.checkpoint import Checkpoint, open_checkpoint
from tests.support.loads import TEXT_1, TEXT_2, TOWER, apart, is_tower, mixed, write
from tests.support.tiny_vision import gemma3_vision


def one_file(name: str) -> str:
    return "model.safetensors"


def tower_apart_from_two(name: str) -> str:
    """A file of the tower's, and one that it shares."""
    return TOWER if is_tower(name) and "encoder" in name else TEXT_1


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Checkpoint]:
    def opened(layout: Callable[[str], str]) -> Checkpoint:
        write(tmp_path, gemma3_vision(), layout)
        return open_checkpoint(str(tmp_path))

    return opened


@pytest.mark.parametrize(
    ("layout", "files"),
    [
        (apart, {TEXT_1, TEXT_2}),
        (tower_apart_from_two, {TEXT_1}),
        (mixed, set()),
        (one_file, set()),
    ],
)
def test_text_rests_on_the_files_that_hold_anything_but_the_tower_if_those_are_not_all(
    checkpoint: Callable[..., Checkpoint], layout: Callable[[str], str], files: set[str]
) -> None:
    opened = checkpoint(layout)
    assert text_files(opened, opened) == files


@pytest.mark.parametrize(("precision", "converts"), [("float32", False), ("bfloat16", True), ("int8", True)])
def test_bytes_are_let_go_where_the_run_converts_them(
    checkpoint: Callable[..., Checkpoint], precision: str, converts: bool
) -> None:
    opened = checkpoint(apart)
    assert stored_dtype(opened) == "float32"
    plan = plan_run(opened, ModelSettings("m", "x", precision=precision))
    assert (plan.precision, plan.converts, plan.reason) == (precision, converts, "asked for")
    assert 1.0 <= plan.weights / opened.total_parameters <= 4.0


def test_a_model_that_fits_in_a_cache_is_computed_on_one_thread_unless_more_are_asked_for(
    checkpoint: Callable[..., Checkpoint],
) -> None:
    plan = plan_run(checkpoint(apart), ModelSettings("m", "x", precision="float32"))
    assert threads_for(plan, None) == 1
    assert threads_for(plan, 3) == 3
