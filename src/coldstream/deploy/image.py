"""What an image is built from, and what a failed build means; pure, but for reading the installed package.

The build context is the Dockerfile, the installed versions of our dependencies and the installed package itself. Its
tag is a digest of exactly that: an image that exists under its tag need not be built again, and configuration is not
part of it.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from coldstream.deploy.access import NEEDS, Grant, Need, Principal, principal_member, resources
from coldstream.deploy.cards import Card, torch_for, vllm_base
from coldstream.deploy.target import Target
from coldstream.errors import DeployError
from coldstream.settings import DeploySettings

Variant = Literal["gpu", "cpu", "vllm"]
VARIANTS: tuple[Variant, ...] = ("gpu", "cpu", "vllm")

_EXTRA = re.compile(r"""extra == ['"]([^'"]+)""")
BUILDER = "gcr.io/cloud-builders/docker"
BUILD_TIMEOUT = 3600
PLUGIN = "[vllm.general_plugins]\ncoldstream = coldstream.engines.vllm.plugin:register\n"
"""How vLLM finds our loader in an image; an installed package has it from pyproject.toml."""


@dataclass(frozen=True, slots=True)
class Context:
    """The files of a build: path to content, which Dockerfile they are for, and the Dockerfile's arguments.

    `base_of` is the day whose base image is wanted; without one, whichever the build's cache has.
    """

    variant: Variant
    files: Mapping[str, bytes]
    arguments: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    base_of: str | None = None

    @property
    def tag(self) -> str:
        """The image's tag; the same files and arguments give the same one."""
        digest = sha256()
        for name in sorted(self.files):
            digest.update(f"{len(name)}:{name}:{len(self.files[name])}:".encode() + self.files[name])
        for name, value in sorted(self.arguments.items()):
            digest.update(f"{name}={value}\n".encode())
        digest.update((self.base_of or "").encode())
        return f"{self.variant}-{digest.hexdigest()[:12]}"

    @property
    def torch(self) -> str | None:
        """The version of torch that is installed, from torch.txt; None where there is none."""
        pinned = self.files.get("torch.txt", b"").decode().strip()
        return pinned.removeprefix("torch==") or None

    def archive(self) -> bytes:
        """A .tar.gz whose bytes depend on nothing but the files."""
        buffer = io.BytesIO()
        with (
            gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w") as tar,
        ):
            for name in sorted(self.files):
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(self.files[name]), 0o644
                tar.addfile(entry, io.BytesIO(self.files[name]))
        return buffer.getvalue()


def context(variant: Variant) -> Context:
    """The build context of the installed Coldstream.

    Raises:
        DeployError: the installation lacks the Dockerfiles.
    """
    package = Path(__file__).resolve().parents[1]
    files = {f"site/coldstream/{name}": data for name, data in package_files(package).items()}
    docker = docker_folder(package)
    files["Dockerfile"] = (docker / f"{variant}.Dockerfile").read_bytes()
    files["entry.py"] = (docker / "entry.py").read_bytes()
    version = metadata.version("coldstream")
    about = f"Metadata-Version: 2.1\nName: coldstream\nVersion: {version}\n"
    files[f"site/coldstream-{version}.dist-info/METADATA"] = about.encode()
    files[f"site/coldstream-{version}.dist-info/entry_points.txt"] = PLUGIN.encode()
    if variant == "vllm":
        files["ranges.txt"] = ranges().encode()
        return Context(variant, files)
    pinned = requirements("torch") if variant == "gpu" else requirements()
    files["requirements.txt"] = pinned.encode()
    if variant == "gpu":
        # By itself, so that another version of anything else leaves torch's layer as it is.
        files["torch.txt"] = "".join(line for line in pinned.splitlines(True) if line.startswith("torch==")).encode()
    return Context(variant, files)


def for_card(built: Context, card: Card) -> Context:
    """With torch from the index whose build the card's driver runs, or on vLLM's image with such a CUDA."""
    if built.variant == "vllm":
        return replace(built, arguments={**built.arguments, "BASE": vllm_base(card)})
    if built.torch is None:
        return built
    version, index = torch_for(card, built.torch)
    ours, theirs = f"torch=={built.torch}\n".encode(), f"torch=={version}\n".encode()
    pinned = ("torch.txt", "requirements.txt")
    files = {name: data.replace(ours, theirs) if name in pinned else data for name, data in built.files.items()}
    return replace(built, files=files, arguments={**built.arguments, "TORCH_INDEX": index})


def package_files(package: Path) -> dict[str, bytes]:
    """The package's own files by their names below its folder.

    Without weights, which come from the bucket, and without what was compiled here: this machine's processor and
    system need not be the image's, which compiles its own.
    """
    return {
        path.relative_to(package).as_posix(): path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and _belongs(path)
    }


def _belongs(path: Path) -> bool:
    weights = path.suffix == ".safetensors" or path.name == "tokenizer.json"
    compiled = path.suffix in {".pyc", ".so", ".cubin"} or "__pycache__" in path.parts
    return not weights and not compiled


def docker_folder(package: Path) -> Path:
    """Where the Dockerfiles lie: inside an installed package, or at the root of a checkout (src/coldstream)."""
    for folder in (package / "deploy" / "docker", package.parents[1] / "docker"):
        if (folder / "cpu.Dockerfile").is_file():
            return folder
    raise DeployError(
        f"no Dockerfiles beside {package}; install coldstream from its wheel, or name an image of your own"
    )


def requirements(*extras: str) -> str:
    """The project's own dependencies and extras', pinned to what is installed here: what was tried is what is deployed.

    Raises:
        DeployError: one is not installed here; with the line that installs it.
    """
    lines = set()
    for name in _own_requirements(*extras):
        project = _project_name(name)
        try:
            # "+cpu" names the index a wheel came from; the Dockerfile chooses the index.
            version = metadata.version(project).partition("+")[0]
        except metadata.PackageNotFoundError as exc:
            wanted = f"coldstream[{','.join(extras)}]" if extras else "coldstream"
            raise DeployError(
                f"the image takes the version of {project} that is installed here, and there is none; "
                f"run: pip install '{wanted}'"
            ) from exc
        lines.add(f"{project}=={version}")
    return "\n".join(sorted(lines)) + "\n"


def ranges() -> str:
    """The project's own dependencies as it declares them: for an image that has most of them already."""
    return "\n".join(sorted(_own_requirements())) + "\n"


def _own_requirements(*extras: str) -> list[str]:
    lines = (line.partition(";") for line in metadata.requires("coldstream") or [])
    of = [(name.strip(), _EXTRA.search(marker)) for name, _, marker in lines]
    return [name for name, extra in of if extra is None or extra[1] in extras]


def _project_name(requirement: str) -> str:
    for index, character in enumerate(requirement):
        if not (character.isalnum() or character in "-_."):
            return requirement[:index]
    return requirement


def build_request(
    target: Target, built: Context, source_object: str, generation: int, *, immutable: bool, wanted: DeploySettings
) -> dict[str, Any]:
    """A Cloud Build that makes one image from one generation of its source; the last one's layers are its cache.

    A repository whose tags cannot be moved has no tag that means the last one.
    """
    image, cache = f"{target.image}:{built.tag}", f"{target.image}:{built.variant}-cache"
    args = ["build", "--build-arg", "BUILDKIT_INLINE_CACHE=1", "-t", image]
    if built.base_of is not None:
        args += ["--pull", "--no-cache"]
    elif not immutable:
        args += ["--cache-from", cache]
    args += [] if immutable else ["-t", cache]
    args += [word for name, value in sorted(built.arguments.items()) for word in ("--build-arg", f"{name}={value}")]
    options: dict[str, Any] = {"logging": "CLOUD_LOGGING_ONLY"}
    if wanted.build_pool is not None:
        options["pool"] = {"name": wanted.build_pool}
    return {
        # Other writers of the bucket cannot exchange a generation.
        "source": {
            "storage_source": {
                "bucket": target.source_bucket,
                "object_": source_object,
                "generation": generation,
            }
        },
        "steps": [{"name": BUILDER, "env": ["DOCKER_BUILDKIT=1"], "args": [*args, "."]}],
        "images": [image] if immutable else [image, cache],
        "timeout": {"seconds": BUILD_TIMEOUT},
        "service_account": f"projects/{target.project}/serviceAccounts/{target.build_account}",
        # A build with an account of its own must say where its logs go, and may not use Cloud Build's own bucket.
        "options": options,
        "tags": ["coldstream", built.tag],
    }


# What Cloud Build says when it refuses to begin -> what mends it.
BARRED_REGION = "cannot run builds in this region"
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        BARRED_REGION: "name another with deploy.build_region",
        "allowedWorkerPools": "an organisation policy wants a private pool; name it with deploy.build_pool",
    }
)


def refused(target: Target, said: str) -> tuple[str, Grant | None]:
    """What mends a build that was refused at once, by the words of the refusal: advice, or a grant."""
    if "could not resolve source" in said and "storage.objects" in said:
        need = next(item for item in NEEDS if item.step == "source bucket" and item.principal is Principal.BUILD)
        return "the build account may not read the source", _grant(target, need)
    advice = next((text for mark, text in _REFUSED.items() if mark in said), "")
    return advice, None


RUNNING = frozenset({"PENDING", "QUEUED", "WORKING"})

_LACKS: Mapping[str, tuple[str, str]] = {
    "FETCH_SOURCE_FAILED": ("source bucket", "the build account could not read the source"),
    "LOGGING_FAILURE": ("logs", "the build account could not write logs"),
    "PUSH_NOT_AUTHORIZED": ("push", "the build account may not push the image"),
}
_MEANS: Mapping[str, str] = {
    "PUSH_FAILED": "the image could not be pushed; is the repository still there? run the deployment again",
    "PUSH_IMAGE_NOT_FOUND": "the build ended without an image; look at its log",
    "USER_BUILD_STEP": "a line of the Dockerfile failed; its output is above and in the log",
    "TIMEOUT": f"the build took longer than {BUILD_TIMEOUT} s; run the deployment again",
    "CANCELLED": "somebody cancelled the build; run the deployment again",
    "EXPIRED": "the build waited too long for a worker; run the deployment again later",
    "INTERNAL_ERROR": "Cloud Build failed by itself; run the deployment again",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a build failed and what mends it."""

    cause: str
    message: str
    grant: Grant | None


def failure(target: Target, build: Mapping[str, Any]) -> Failure:
    """A failed build's `failure_info` and status, turned into the fix."""
    info = build.get("failure_info", {})
    cause = info.get("type_") or build.get("status", "FAILURE")
    detail = info.get("detail") or build.get("status_detail") or "no detail"
    if cause in _LACKS:
        step, meaning = _LACKS[cause]
        need = next(item for item in NEEDS if item.step == step and item.principal is Principal.BUILD)
        return Failure(cause, f"{meaning}: {detail}", _grant(target, need))
    return Failure(cause, f"{_MEANS.get(cause, 'the build failed')}: {detail}", None)


def _grant(target: Target, need: Need) -> Grant:
    return Grant(need.role, principal_member(need.principal, target, ""), resources(need.place, target)[0])
