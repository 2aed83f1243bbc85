"""`bench/gpu.py`: parity, starts, rates and launches on one GPU, in under nine minutes, without a network.

    python bench/gpu.py                  on the GPU that is here
    python bench/gpu.py --plan           without one: launches, bytes and floors, computed
    python bench/gpu.py --device cpu --tiny      every section on tiny shapes, to see that it runs

Nothing is brought along but Coldstream: weights are random, with the shapes of Gemma 3. What is not installed
(transformers, in a service's image) is said and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

from coldstream.bench.gpu import floors
from coldstream.bench.gpu.floors import Floor, Work
from coldstream.bench.gpu.report import BenchReport
from coldstream.bench.random_weights import SHAPES, GemmaShape, write

TINY: Mapping[str, GemmaShape] = {
    "tiny": GemmaShape(128, 6, 4, 1, 256, head_dim=32, window=64, context=2048, vocab=1196)
}
PRECISIONS: tuple[Literal["bfloat16", "int8"], ...] = ("bfloat16", "int8")


@dataclass(frozen=True, slots=True)
class GpuBench:
    """What is run. `work` is a folder for checkpoints, in memory where there is enough; `uri` one more checkpoint.

    `graphs`: decode steps as CUDA graphs; None: with and without for the first shape, with for the others.
    """

    device: Literal["cpu", "cuda"]
    shapes: Mapping[str, GemmaShape]
    clients: tuple[int, ...]
    tokens: int
    prompt: int
    longest: int
    work: Path
    demo: Path
    report: BenchReport
    uri: str | None = None
    graphs: Literal["on", "off", "both"] | None = None

    def everything(self) -> int:
        """All sections, those that matter most first; the exit code."""
        report = self.report
        report.section("machine", self.machine)
        report.section("parity with transformers", self.parity)
        report.section("int8 beside bfloat16", self.int8)
        if self.uri is not None:
            self._model(self.uri, self.uri, None)
        for name, shape in self.shapes.items():
            folder = self.work / name
            report.section(f"{name}: random weights", partial(self._write, folder, shape))
            self._model(name, str(folder), shape)
            report.section(f"{name}: transformers", partial(self.transformers, folder))
            shutil.rmtree(folder, ignore_errors=True)
        return report.end()

    def _model(self, name: str, uri: str, shape: GemmaShape | None) -> None:
        self.report.section(f"{name}: starts", partial(self.starts, uri))
        for precision in PRECISIONS:
            for graphs in self._graphs(name):
                title = f"{name}: {precision}" if graphs else f"{name}: {precision}, without CUDA graphs"
                self.report.section(title, partial(self.rates, uri, shape, precision, graphs=graphs))

    def _graphs(self, name: str) -> tuple[bool, ...]:
        wanted = self.graphs or ("both" if name == next(iter(self.shapes)) else "on")
        return {"on": (True,), "off": (False,), "both": (True, False)}[wanted]

    def _write(self, folder: Path, shape: GemmaShape) -> None:
        folder.mkdir()
        self.report.say(f"{write(shape, folder, self.demo) / 1e9:.2f} GB")

    def machine(self) -> None:
        """What it runs on."""
        import torch

        from coldstream.backends.device import Machine

        self.report.say(Machine.of_this_machine().versions)
        self.report.say(f"{os.cpu_count()} CPUs")
        if self.device == "cuda":
            free, total = torch.cuda.mem_get_info()
            capability = ".".join(map(str, torch.cuda.get_device_capability()))
            self.report.say(
                f"{torch.cuda.get_device_name()}, {capability}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
            )

    def parity(self) -> None:
        """Every case of `parity.cases`."""
        if importlib.util.find_spec("transformers") is None:
            self.report.say("transformers is not here: nothing to compare with")
            return
        from coldstream.bench.gpu import parity

        for case in parity.cases(self.longest):
            folder = parity.saved(case, self.work, self.demo)
            parity.run(self.report, case, folder, device=self.device, tokens=min(parity.TOKENS, self.tokens))
            shutil.rmtree(folder)

    def int8(self) -> None:
        """On the demo's trained model."""
        from coldstream.bench.gpu import parity

        parity.int8_beside_bfloat16(self.report, self.demo, device=self.device)

    def starts(self, uri: str) -> None:
        """In bfloat16, into the GPU and, to compare, into the host's memory."""
        from coldstream.bench.gpu import starts

        for device in dict.fromkeys((self.device, "cpu")):
            found = starts.measure(uri, device=device, precision="bfloat16")
            self.report.say(
                f"to {device}: {found.nbytes / 1e9:.2f} GB in {found.fetched:.2f} s, "
                f"{found.nbytes / found.fetched / 1e9:.2f} GB/s; exec to first token {found.first_token:.2f} s, "
                f"ready {found.ready:.2f} s; host peak {found.peak / 1e9:.2f} GB"
            )

    def rates(
        self, uri: str, shape: GemmaShape | None, precision: Literal["bfloat16", "int8"], *, graphs: bool
    ) -> None:
        """Decode, prefill and what the profiler counts."""
        from coldstream.bench.gpu import rates
        from coldstream.bench.gpu.served import serving

        floor = self._floor(shape, precision)
        with serving(uri, device=self.device, precision=precision, graphs=graphs) as loaded:
            found = {
                clients: rates.decode(self.report, loaded, floor, clients=clients, tokens=self.tokens)
                for clients in self.clients
            }
            one, many = self.clients[0], self.clients[-1]
            self.report.say(f"{many} clients have {found[many] / found[one]:.1f} x what {one} has")
            rates.prefill(self.report, loaded, floor, length=self.prompt)
            rates.profile(self.report, loaded, floor)

    def transformers(self, folder: Path) -> None:
        """The same shape through transformers."""
        if importlib.util.find_spec("transformers") is None:
            self.report.say("transformers is not here")
            return
        from coldstream.bench.gpu import rates

        clients = (self.clients[0], min(32, self.clients[-1]))
        rates.transformers_rate(self.report, folder, device=self.device, clients=clients, tokens=min(32, self.tokens))

    def _floor(self, shape: GemmaShape | None, precision: str) -> Floor | None:
        """Of a known shape on a known card."""
        import torch

        if shape is None or self.device == "cpu":
            return None
        peak = floors.peak_of(torch.cuda.get_device_name())
        return None if peak is None else Floor(Work(shape, 1 if precision == "int8" else 2), peak)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code is 1 where a section failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri", nargs="?", help="one more checkpoint, of which starts and rates are wanted")
    parser.add_argument("--plan", action="store_true", help="compute floors and launches; needs no GPU")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, few tokens")
    parser.add_argument("--shape", action="append", choices=sorted(SHAPES), help="one of these; may be repeated")
    parser.add_argument(
        "--graphs",
        choices=("on", "off", "both"),
        help="decode steps as CUDA graphs; left out: both for the first shape, on for the others",
    )
    parser.add_argument("--seconds", type=float, default=480.0, help="no section is begun after so many")
    given = parser.parse_args(arguments)
    shapes = TINY if given.tiny else {name: SHAPES[name] for name in given.shape or SHAPES}
    if given.plan:
        print("\n".join(floors.plan(shapes)))
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="coldstream-gpu-", dir=_memory()) as work,
        as_file(files("coldstream.demo") / "sql_model") as demo,
    ):
        bench = GpuBench(
            device=given.device,
            shapes=shapes,
            clients=(1, 4) if given.tiny else (1, 8, 32, 64),
            tokens=12 if given.tiny else 128,
            prompt=256 if given.tiny else 2048,
            longest=600 if given.tiny else 4200,
            work=Path(work),
            demo=demo,
            report=BenchReport(given.seconds),
            uri=given.uri,
            graphs=given.graphs,
        )
        return bench.everything()


def _memory() -> str | None:
    """Memory, where it holds all shapes: the disk is not what is measured."""
    shared = Path("/dev/shm")  # noqa: S108  a folder of one's own is made in it
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > 16e9 else None
