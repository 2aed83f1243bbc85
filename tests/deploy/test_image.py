"""What an image is built from: reproducible, without weights, and the Dockerfiles that go with it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from coldstream.backends.cpu import compile as compiling
from coldstream.deploy import image
from coldstream.deploy.image import Context

DOCKER = Path(__file__).resolve().parents[2] / "docker"


@pytest.fixture(scope="module")
def context() -> Context:
    return image.context("cpu")


def test_the_context_has_the_package_its_dependencies_and_no_weights(context: Context) -> None:
    names = set(context.files)
    assert {"Dockerfile", "entry.py", "requirements.txt", "site/coldstream/settings/schema.py"} <= names
    assert any(name.endswith(".dist-info/METADATA") for name in names)
    assert not [name for name in names if name.endswith((".safetensors", ".pyc", "tokenizer.json"))]


def test_what_was_compiled_on_this_machine_and_weights_stay_here(tmp_path: Path) -> None:
    kept = ("backends/cpu/kernels/products.c", "backends/cpu/compile.py", "demo/coldstream.toml")
    left = (
        "backends/cpu/kernels-any.so",
        "model/__pycache__/a.pyc",
        "demo/m/model.safetensors",
        "demo/m/tokenizer.json",
    )
    for name in (*kept, *left):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert set(image.package_files(tmp_path)) == set(kept)


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_the_kernels_are_compiled_from_files_of_the_context_before_the_project_is_copied(
    variant: image.Variant,
) -> None:
    """A layer that depends on these files alone, and that a new version of the project does not touch."""
    files = image.context(variant).files
    text = files["Dockerfile"].decode()
    stage = text[text.index("AS kernels") : text.index("RUN mkdir /build/made")]
    sources = [word for line in stage.splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert sources == ["site/coldstream/backends/cpu/compile.py", "site/coldstream/backends/cpu/kernels"]
    copied = {name.removeprefix("site/coldstream/backends/cpu/") for name in files if name.startswith(tuple(sources))}
    assert copied == {
        "compile.py",
        *(f"kernels/{path.relative_to(compiling.SOURCE)}" for path in compiling.SOURCE.rglob("*.[ch]")),
    }
    assert text.index("COPY --from=kernels") < text.index("COPY entry.py site")


def test_dependencies_are_pinned_to_what_is_installed_without_extras(context: Context) -> None:
    lines = context.files["requirements.txt"].decode().splitlines()
    assert all("==" in line and "+" not in line for line in lines)
    assert not [line for line in lines if line.startswith("torch==")]
    assert "torch.txt" not in context.files
    assert not [line for line in lines if line.startswith("google-cloud-run")]


def test_torch_is_in_a_gpus_image_alone_and_in_a_layer_of_its_own() -> None:
    files = image.context("gpu").files
    (torch,) = (line for line in files["requirements.txt"].decode().splitlines() if line.startswith("torch=="))
    assert files["torch.txt"].decode() == f"{torch}\n"
    assert "torch" not in (DOCKER / "cpu.Dockerfile").read_text().lower()


def test_the_archive_depends_on_nothing_but_its_files() -> None:
    one = Context("cpu", {"a": b"1", "b": b"2"})
    assert one.archive() == Context("cpu", {"b": b"2", "a": b"1"}).archive()
    with tarfile.open(fileobj=io.BytesIO(one.archive())) as tar:
        assert tar.getnames() == ["a", "b"]


def test_another_byte_or_another_name_is_another_tag() -> None:
    """Lengths are part of the digest: moving a byte from one file to the next is seen."""
    alike = ({"a": b"1b2"}, {"a": b"1", "b": b"2"}, {"a1": b"b2"})
    tags = {Context("cpu", files).tag for files in alike}
    assert len(tags) == 3
    assert Context("gpu", {"a": b"1"}).tag != Context("cpu", {"a": b"1"}).tag


def test_an_image_with_vllm_takes_from_us_what_its_base_lacks_and_our_plug_in() -> None:
    """What vLLM was built with stays: ranges under its own versions, and no torch; it finds us by an entry point."""
    files = image.context("vllm").files
    lines = files["ranges.txt"].decode().splitlines()
    assert any(line.startswith("obstore") and ">=0.12" in line for line in lines)
    assert not [line for line in lines if line.startswith("torch") or "==" in line]
    (points,) = (data.decode() for name, data in files.items() if name.endswith("entry_points.txt"))
    assert "coldstream.engines.vllm.plugin:register" in points
    text = files["Dockerfile"].decode()
    assert "--constraint /build/base.txt" in text
    assert text.index("COPY ranges.txt") < text.index("COPY entry.py site") < text.index("USER 10001")
    assert "requirements.txt" not in files


def test_the_plug_in_of_an_image_is_the_one_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text())["project"]
    (group,) = project["entry-points"].items()
    name, points = group
    written = "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in points.items())]) + "\n"
    assert written == image.PLUGIN


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_a_dockerfile_ends_as_an_unprivileged_user_with_compiled_code(variant: str) -> None:
    text = (DOCKER / f"{variant}.Dockerfile").read_text()
    assert text.index("USER 10001") > text.rindex("COPY ")
    assert "compileall" in text
    order = ("COPY requirements.txt", "COPY --from=kernels", "COPY entry.py site", "USER 10001")
    order = ("COPY torch.txt", *order) if variant == "gpu" else order
    assert sorted(order, key=text.index) == list(order)


def test_the_entry_point_hands_the_configuration_over_as_a_file_and_keeps_its_process() -> None:
    """exec, not a child: SIGTERM reaches the server itself."""
    text = (DOCKER / "entry.py").read_text()
    assert "os.execv(" in text
    assert "subprocess" not in text
