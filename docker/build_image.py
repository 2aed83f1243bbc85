"""Builds the CPU image without a Docker daemon, starts it, and judges what the model that it streams answers.

    python docker/build_image.py --check            # as root; needs debootstrap and buildah (apt install both)

debootstrap makes a base with Python in it, buildah builds docker/cpu.Dockerfile on it with chroot isolation (no daemon,
no namespaces), and the check runs the image's own entry point as its own user, with the demo's SQL model in a local
bucket (fake-gcs-server, from the demo extra). It ends with another exit code than 0 when an answer is not the command
that the model was taught, when the compiled kernels cannot be loaded, when the server runs as root, or when SIGTERM
does not end it in peace. Nothing outside --work and buildah's --root below it is written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

from coldstream import settings
from coldstream.demo.bucket import LocalBucket
from coldstream.demo.sql_pairs import sql_pairs
from coldstream.deploy import image

BASE = "localhost/coldstream-base"
IMAGE = "localhost/coldstream-cpu"
ENTRY = ("/opt/coldstream/bin/python", "/opt/coldstream/site/entry.py")
QUESTIONS = 12


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
    for downloaded in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / downloaded)
        (root / downloaded).mkdir()
    container = buildah("from", "scratch")
    buildah("add", container, str(root), "/")
    buildah("commit", "--rm", container, BASE)


def build(buildah: Buildah, work: Path, *, volumes: list[str], edited: bool = False) -> float:
    """The image from docker/cpu.Dockerfile and the installed package; the seconds it took.

    `edited` stands for another version of the project: a line is added to one of its files.
    """
    context = image.context("cpu")
    folder = work / "context"
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in context.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if edited:
        with (folder / "site" / "coldstream" / "__init__.py").open("a", encoding="utf-8") as file:
            file.write(f"\n# edited at {time.time_ns()}\n")
    options = ["--build-arg", f"BASE={BASE}"]
    options += [word for volume in volumes for word in ("--volume", volume)]
    begun = time.monotonic()
    buildah.loudly(
        "bud", "--layers", "--format", "docker", "-t", IMAGE, *options, "-f", str(folder / "Dockerfile"), str(folder)
    )
    return time.monotonic() - begun


def check(buildah: Buildah) -> None:
    """Start the image on the demo's SQL model, ask what the model was taught, and end it with SIGTERM.

    Raises:
        SystemExit: something is not as it must be.
    """
    with as_file(files("coldstream.demo")) as demo, LocalBucket() as bucket:
        uri = bucket.add("models", "sql", demo / "sql_model")
        with _running(buildah, {"COLDSTREAM_TOML": _configuration(demo, uri), **bucket.environment}) as (port, server):
            print(f"kernels: {_kernels(buildah)}")
            uid = _owner(port)
            print(f"runs as uid {uid}")
            if uid == 0:
                raise SystemExit("the server runs as root")
            _judge(f"http://127.0.0.1:{port}/generate")
            begun = time.monotonic()
            os.kill(_process(port), signal.SIGTERM)
            code = server.wait(timeout=15)
            print(f"ended {time.monotonic() - begun:.1f} s after SIGTERM, exit code {code}")
            if code != 0:
                raise SystemExit(f"SIGTERM ended the server with exit code {code}, not 0")


def _configuration(demo: Path, uri: str) -> str:
    """The demo's SQL task on the model in the bucket; JSON's strings are TOML's."""
    task = settings.load(demo / "coldstream.toml", environ={}).tasks["sql"]
    return (
        f'[models.sql]\nuri = "{uri}"\n'
        f'[tasks.sql]\nmodel = "sql"\nprompt = {json.dumps(task.prompt)}\nprompt_input = "{task.prompt_input}"\n'
        "[tasks.sql.sampling]\nmax_tokens = 256\ntemperature = 0.0\n"
    )


@contextmanager
def _running(buildah: Buildah, variables: dict[str, str]) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The image's entry point as its own user, ready, on a free port that $PORT names."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    container = buildah("from", IMAGE)
    options = [word for key, value in {"PORT": str(port), **variables}.items() for word in ("--env", f"{key}={value}")]
    begun = time.monotonic()
    server = buildah.start("run", "--isolation", "chroot", *options, container, "--", *ENTRY)
    try:
        _wait(f"http://127.0.0.1:{port}/readyz", server)
        print(f"ready after {time.monotonic() - begun:.1f} s")
        yield port, server
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        buildah("rm", container)


def _kernels(buildah: Buildah) -> str:
    """The compiled kernels that the image loads on this processor; it ends with an error where there are none."""
    container = buildah("from", IMAGE)
    code = "from coldstream.backends.cpu import library; print(library.load().path)"
    try:
        return buildah("run", "--isolation", "chroot", container, "--", ENTRY[0], "-c", code)
    finally:
        buildah("rm", container)


def _judge(url: str) -> None:
    """Questions from the whole list of those that the model was taught; each answer must be the expected command."""
    pairs = sql_pairs()
    chosen = pairs[:: max(1, len(pairs) // QUESTIONS)]
    wrong = []
    for pair in chosen:
        said = _post(url, {"type": "sql", "prompt": pair.question, "inputs": {"context": pair.context}})
        if said != pair.answer:
            wrong.append(f"{pair.question!r}: expected {pair.answer!r}, got {said!r}")
    print(f"{len(chosen) - len(wrong)} of {len(chosen)} answers are the expected SQL, as {chosen[0].answer!r}")
    if wrong:
        raise SystemExit("\n".join(wrong))


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
    driver = "overlay where it can be mounted; vfs works anywhere, and copies the whole image for every layer"
    parser.add_argument("--driver", choices=("overlay", "vfs"), default="overlay", help=driver)
    parser.add_argument("--check", action="store_true", help="start it, and judge its answers")
    parser.add_argument(
        "--rebuild", action="store_true", help="build once more with an edited source, and say how long"
    )
    chosen = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("chroot isolation and debootstrap need root")
    chosen.work.mkdir(parents=True, exist_ok=True)
    buildah = Buildah(chosen.work, chosen.driver)
    make_base(buildah, chosen.work, chosen.mirror, chosen.suite)
    seconds = build(buildah, chosen.work, volumes=chosen.volume)
    size = buildah("images", "--format", "{{.Size}}", IMAGE)
    print(f"{IMAGE}: built in {seconds:.1f} s, {size}")
    if chosen.rebuild:
        again = build(buildah, chosen.work, volumes=chosen.volume, edited=True)
        print(f"{IMAGE}: built in {again:.1f} s after a line of the project was changed")
    if chosen.check:
        check(buildah)


if __name__ == "__main__":
    main()
    sys.exit(0)
