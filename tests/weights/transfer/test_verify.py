"""`verify` of a checkpoint much larger than the memory that it may take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from coldstream.demo.bucket import LocalBucket
from tests.support import files

MB = 1_000_000
LIMIT = 300 * MB
LAYERS, MATRIX = 12, 100 * MB

VERIFY = """
import sys
from coldstream import verify
report = verify(sys.argv[1])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(report.total_bytes, report.verified, int(peak.split()[1]) * 1024)
"""


def test_a_checkpoint_of_any_size_is_verified_in_300_megabytes(tmp_path: Path) -> None:
    """Twelve matrices of zeros, which take no room on disk, each larger than a part."""
    table = {
        f"model.layers.{n}.w": {"dtype": "U8", "shape": [MATRIX], "data_offsets": [n * MATRIX, (n + 1) * MATRIX]}
        for n in range(LAYERS)
    }
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(files.header(json.dumps(table)))
        file.truncate(file.tell() + LAYERS * MATRIX)
    with LocalBucket() as bucket:
        uri = bucket.add("models", "large", tmp_path)
        command = [sys.executable, "-c", VERIFY, uri]
        environment = {**os.environ, **bucket.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.stderr == ""
    total, verified, peak = done.stdout.split()
    assert int(total) > LAYERS * MATRIX
    assert verified == "True"
    assert int(peak) < LIMIT
    print(f"{int(total) / MB:.0f} MB verified, peak {int(peak) / MB:.0f} MB")
