"""Builds the CPU image without a Docker daemon, starts it, and asks the model that it streams a question.

    python docker/build_image.py --check            # as root; needs debootstrap and buildah (apt install both)

debootstrap makes a base with Python in it, buildah builds docker/cpu.Dockerfile on it with chroot isolation (no daemon,
no namespaces), and the check runs the image's own entry point as its own user, with the model in a local bucket
(fake-gcs-server, from the demo extra). Nothing outside --work and buildah's --root below it is written.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.resources import as_file, files
from pathlib import Path

from coldstream.demo.bucket import LocalBucket
from coldstream.deploy import image

BASE = "localhost/coldstream-base"
IMAGE = "localhost/coldstream-cpu"


class Buildah:
    """buildah with a store of its own below `work`."""

    def __init__(self, work: Path, driver: str) -> None:
        self._store = ["--root", str(work / "store"), "--runroot", str(work / "run"), "--storage-driver", driver]
        self._environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(work)}

    def command(self, *words: str) -> list[str]:
        return ["buildah", *self._store, *words]

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            self.command(*words), check=True, stdout=subprocess.PIPE, text=True, env=self._environment
        )
        return done.stdout.strip()

    def loudly(self, *words: str) -> None:
        """With everything that it prints, on stderr: what failed is in there."""
        subprocess.run(self.command(*words), check=True, stdout=sys.stderr, env=self._environment)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(*words), env=self._environment, start_new_session=True)


def make_base(buildah: Buildah, work: Path, mirror: str, suite: str) -> None:
    """A minimal Debian with Python, once."""
    root = work / "base"
    if BASE in buildah("images", "--format", "{{.Name}}"):
        return
    packages = "python3,python3-venv,ca-certificates"
    command = ["debootstrap", "--variant=minbase", f"--include={packages}", suite, str(root), mirror]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    container = buildah("from", "scratch")
    buildah("add", container, str(root), "/")
    buildah("commit", "--rm", container, BASE)


def build(buildah: Buildah, work: Path, *, volumes: list[str], index: str | None) -> float:
    """The image from docker/cpu.Dockerfile and the installed package; the seconds it took."""
    context = image.context("cpu")
    folder = work / "context"
    for name, data in context.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    options = ["--build-arg", f"BASE={BASE}"]
    options += [word for volume in volumes for word in ("--volume", volume)]
    if index is not None:
        options += ["--build-arg", f"TORCH_INDEX={index}"]
    begun = time.monotonic()
    buildah.loudly(
        "bud", "--layers", "--format", "docker", "-t", IMAGE, *options, "-f", str(folder / "Dockerfile"), str(folder)
    )
    return time.monotonic() - begun


def check(buildah: Buildah) -> None:
    """Start the image on the demo's SQL model, ask it, and end it with SIGTERM."""
    with as_file(files("coldstream.demo")) as demo, LocalBucket() as bucket:
        uri = bucket.add("models", "sql", demo / "sql_model")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = f'[models.sql]\nuri = "{uri}"\n[tasks.sql]\nmodel = "sql"\n'
        container = buildah("from", IMAGE)
        variables = {"PORT": str(port), "COLDSTREAM_TOML": config, **bucket.environment}
        options = [word for key, value in variables.items() for word in ("--env", f"{key}={value}")]
        entry = ["/opt/coldstream/bin/python", "/opt/coldstream/site/entry.py"]
        begun = time.monotonic()
        server = buildah.start("run", "--isolation", "chroot", *options, container, "--", *entry)
        try:
            _wait(f"http://127.0.0.1:{port}/readyz", server)
            print(f"ready after {time.monotonic() - begun:.1f} s")
            print(f"runs as uid {_owner(port)}")
            question = {"type": "sql", "prompt": "How many donors are there?", "max_tokens": 40}
            print(f"answer: {_post(f'http://127.0.0.1:{port}/generate', question)!r}")
            begun = time.monotonic()
            os.kill(_process(port), signal.SIGTERM)
            server.wait(timeout=15)
            print(f"ended {time.monotonic() - begun:.1f} s after SIGTERM, exit code {server.returncode}")
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
            buildah("rm", container)


def _wait(url: str, server: subprocess.Popen[bytes], patience: float = 120.0) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the container ended with {server.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  our own loopback address
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"{url} was not ready after {patience:.0f} s")


def _post(url: str, body: dict[str, object]) -> object:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  our own loopback address
        return json.load(answer)


def _process(port: int) -> int:
    """The process that listens on a port, from /proc (proc(5), net/tcp: state 0A is LISTEN)."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        rows = [line.split() for line in Path(table).read_text().splitlines()[1:]] if Path(table).exists() else []
        inodes |= {row[9] for row in rows if row[3] == "0A" and int(row[1].rsplit(":", 1)[1], 16) == port}
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(entry).strip("socket:[]") in inodes:
                return int(entry.parts[2])
        except OSError:
            continue
    raise SystemExit(f"nothing listens on {port}")


def _owner(port: int) -> int:
    return Path(f"/proc/{_process(port)}").stat().st_uid


def main() -> None:
    """Parse, build, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/coldstream-image"), help="where everything lies")  # noqa: S108
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    parser.add_argument("--suite", default="bookworm")
    volume = "a folder or file for the build alone, HOST:IMAGE:ro; a pip.conf, certificates, wheels"
    parser.add_argument("--volume", action="append", default=[], help=volume)
    parser.add_argument("--torch-index", help="another index for torch than PyTorch's own")
    driver = "overlay where it can be mounted; vfs works anywhere, and copies the whole image for every layer"
    parser.add_argument("--driver", choices=("overlay", "vfs"), default="overlay", help=driver)
    parser.add_argument("--check", action="store_true", help="start it and ask it a question")
    chosen = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("chroot isolation and debootstrap need root")
    chosen.work.mkdir(parents=True, exist_ok=True)
    buildah = Buildah(chosen.work, chosen.driver)
    make_base(buildah, chosen.work, chosen.mirror, chosen.suite)
    seconds = build(buildah, chosen.work, volumes=chosen.volume, index=chosen.torch_index)
    size = buildah("images", "--format", "{{.Size}}", IMAGE)
    print(f"{IMAGE}: built in {seconds:.1f} s, {size}")
    if chosen.check:
        check(buildah)


if __name__ == "__main__":
    main()
    sys.exit(0)
