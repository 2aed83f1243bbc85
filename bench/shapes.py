"""A larger checkpoint costs only its bytes: seconds to the first token, seconds a GB and memory, by size.

    python bench/shapes.py FOLDER-WITH-A-GEMMA-3-TOKENIZER [--shape 270m --shape 1b --shape 4b] [--precision int8]

Writes checkpoints with the shapes of Gemma 3 and random weights, puts them into a local bucket, and starts `coldstream
serve` on each of them. Seconds a GB are those that a byte costs beyond what the smallest shape's start costs.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx2

from coldstream.bench.random_weights import SHAPES, write
from coldstream.demo.bucket import LocalBucket

_SECONDS = 300.0


@dataclass(frozen=True)
class Start:
    """One start. `first_token`: seconds after exec; `peak`: VmHWM of the server, in bytes."""

    shape: str
    precision: str
    nbytes: int
    first_token: float
    peak: int


def start(name: str, uri: str, nbytes: int, precision: str, environment: dict[str, str]) -> Start:
    """Until the first token has come over HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "coldstream",
        "serve",
        uri,
        "--port",
        str(port),
        "--precision",
        precision,
        "--quiet",
    ]
    began = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
    try:
        _ask(f"http://127.0.0.1:{port}", process, began + _SECONDS)
        seconds = time.monotonic() - began
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        return Start(name, precision, nbytes, seconds, int(status["VmHWM"].split()[0]) * 1024)
    finally:
        process.terminate()
        process.wait(30)


def _ask(url: str, process: subprocess.Popen[bytes], deadline: float) -> None:
    body = {"type": "text", "prompt": "The river", "max_tokens": 1}
    while process.poll() is None and time.monotonic() < deadline:
        try:
            httpx2.post(f"{url}/generate", json=body, timeout=_SECONDS).raise_for_status()
        except httpx2.ConnectError:
            time.sleep(0.02)
        else:
            return
    raise SystemExit(f"{url}: no answer; the server's exit code is {process.poll()}")


def table(starts: list[Start]) -> list[dict[str, Any]]:
    """Medians, and what a GB costs beyond the smallest shape's."""
    rows: list[dict[str, Any]] = []
    for precision in dict.fromkeys(item.precision for item in starts):
        of = [item for item in starts if item.precision == precision]
        for shape in dict.fromkeys(item.shape for item in of):
            same = [item for item in of if item.shape == shape]
            row = asdict(same[0]) | {"first_token": median(item.first_token for item in same), "runs": len(same)}
            row["peak"] = int(median(item.peak for item in same))
            rows.append(row)
    for row in rows:
        small = min((r for r in rows if r["precision"] == row["precision"]), key=lambda r: r["nbytes"])
        more = (row["nbytes"] - small["nbytes"]) / 1e9
        row["seconds_per_gb"] = (row["first_token"] - small["first_token"]) / more if more else None
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="a folder with config.json and tokenizer.json of a Gemma 3")
    parser.add_argument("--shape", action="append", choices=SHAPES)
    parser.add_argument("--precision", action="append", choices=["int8", "bfloat16", "float32"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    starts: list[Start] = []
    with tempfile.TemporaryDirectory(prefix="coldstream-shapes-") as place, LocalBucket() as bucket:
        for name in given.shape or SHAPES:
            folder = Path(place) / name
            folder.mkdir()
            nbytes = write(SHAPES[name], folder, given.tokenizer)
            uri = bucket.add("shapes", name, folder)
            for _ in range(given.runs):
                for precision in given.precision or ["int8", "bfloat16"]:
                    starts.append(start(name, uri, nbytes, precision, bucket.environment))
                    print(f"{name} {precision}: {starts[-1].first_token:.1f} s", file=sys.stderr)
    rows = table(starts)
    if given.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'shape':6} {'precision':10} {'GB':>6} {'first token':>12} {'s a GB':>7} {'peak GB':>8} {'of bytes':>9}")
    for row in rows:
        each = f"{row['seconds_per_gb']:.2f}" if row["seconds_per_gb"] is not None else ""
        print(
            f"{row['shape']:6} {row['precision']:10} {row['nbytes'] / 1e9:6.2f} {row['first_token']:10.1f} s {each:>7}"
            f" {row['peak'] / 1e9:8.2f} {row['peak'] / row['nbytes']:7.2f} x"
        )


if __name__ == "__main__":
    main()
