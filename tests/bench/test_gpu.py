"""bench/gpu.py as far as a CPU goes: every section runs, floors follow from shapes, a broken section fails the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from coldstream.bench.gpu import floors, run
from coldstream.bench.gpu.floors import PEAKS, Floor, Work
from coldstream.bench.gpu.report import BenchReport
from coldstream.bench.random_weights import SHAPES, write
from coldstream.weights.checkpoint.checkpoint import open_checkpoint

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "src" / "coldstream" / "demo" / "sql_model"


@pytest.mark.more
@pytest.mark.timeout(400)
def test_every_section_runs_on_tiny_shapes_on_a_cpu(capfd: pytest.CaptureFixture[str]) -> None:
    code = run.main(["--device", "cpu", "--tiny", str(DEMO)])
    out = capfd.readouterr().out
    assert code == 0, out
    assert out.splitlines()[-1] == "green"
    for said in (
        "12 of 12 tokens are transformers'",
        "transformers' by",
        "exec to first token",
        "tokens/s",
        "prefill of",
        "without CUDA graphs",
        "nats",
        DEMO.name,
    ):
        assert said in out


def test_the_plan_names_every_card_and_says_that_it_is_computed() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "gpu.py"), "--plan"], capture_output=True, text=True, check=True
    )
    assert "nothing of it was measured" in done.stdout
    for title in (peak.title for peak in PEAKS.values()):
        assert done.stdout.count(title) == 2 * len(SHAPES)


def test_the_matrices_of_a_shape_are_those_of_its_checkpoint(tmp_path: Path) -> None:
    for shape in run.TINY.values():
        write(shape, tmp_path, DEMO)
        tensors = open_checkpoint(str(tmp_path)).tensors.values()
        assert Work(shape).matrix_elements == sum(info.numel for info in tensors if len(info.shape) == 2)


def test_a_floor_never_falls_with_more_to_do() -> None:
    floor = Floor(Work(SHAPES["4b"]), PEAKS["L4"])
    times = [floor.decode_seconds(rows, 1024) for rows in (1, 8, 64, 4096)]
    assert times == sorted(times)
    assert floor.decode_seconds(1, 8192) > floor.decode_seconds(1, 1024)
    assert Floor(Work(SHAPES["4b"], 1), PEAKS["L4"]).decode_seconds(1, 1) < times[0]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("NVIDIA L4", "NVIDIA L4"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "NVIDIA RTX PRO 6000"),
        ("NVIDIA L40S", None),
    ],
)
def test_a_card_is_known_by_what_the_driver_calls_it(name: str, title: str | None) -> None:
    found = floors.peak_of(name)
    assert (None if found is None else found.title) == title


def test_a_section_that_fails_ends_neither_the_run_nor_in_green(capfd: pytest.CaptureFixture[str]) -> None:
    report = BenchReport(limit=100.0)
    report.section("broken", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    report.section("whole", lambda: report.judge("right", True))
    assert report.end() == 1
    assert "FAILED broken: division by zero" in capfd.readouterr().out
    late = BenchReport(limit=-1.0)
    late.section("late", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert late.end() == 0
    assert "not green" in capfd.readouterr().out
