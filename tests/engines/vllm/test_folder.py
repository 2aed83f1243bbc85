"""What vLLM reads beside the weights: a checkpoint's small files, within a bound, and a config that is true of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from coldstream.engines.vllm import folder
from coldstream.errors import CheckpointError
from coldstream.weights.checkpoint.checkpoint import open_checkpoint_async
from tests.support import files
from tests.support.fault_stores import MemoryStore

SMALL = {"tokenizer.json": b"{}", "merges.txt": b"a b", "chat_template.jinja": b"x"}
OTHERS = {"README.md": b"# hi", "modeling_own.py": b"import os", "optimizer.pt": b"0"}


async def written(
    more: dict[str, bytes], config: dict[str, object] | None = None, head: bool = False, **more_options: int
) -> Path:
    tensors = files.model(0, layers=1)
    if head:
        tensors["lm_head.weight"] = next(iter(tensors.values()))
    contents = files.checkpoint(tensors) | more
    if config is not None:
        contents["config.json"] = json.dumps(config).encode()
    store = MemoryStore(contents)
    return await folder.write_folder(await open_checkpoint_async(store.location, store=store), **more_options)


async def test_config_and_tokenizer_lie_there_and_neither_weights_nor_code() -> None:
    made = await written(SMALL | OTHERS)
    try:
        found = {path.name for path in made.iterdir()}
        assert SMALL.keys() <= found
        assert not found & OTHERS.keys()
        assert not any(name.endswith(".safetensors") for name in found)
        assert (made / "merges.txt").read_bytes() == b"a b"
        assert made.stat().st_mode & 0o077 == 0, "it is for this user alone"
    finally:
        folder.remove(made)
    assert not made.exists()


async def test_more_than_such_files_have_is_refused() -> None:
    with pytest.raises(CheckpointError, match="over the limit"):
        await written({"tokenizer.json": b"x" * 1001}, most=1000)


@pytest.mark.parametrize("head", [True, False])
async def test_the_file_decides_whether_the_head_is_tied(head: bool) -> None:
    config = {"model_type": "x", "tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True}}
    made = await written({}, config, head)
    try:
        said = json.loads((made / "config.json").read_text())
    finally:
        folder.remove(made)
    assert said["tie_word_embeddings"] is not head
    assert said["text_config"]["tie_word_embeddings"] is not head


def test_it_ends_with_its_process_and_not_with_a_fork_of_it(tmp_path: Path) -> None:
    made = tmp_path / "made"
    code = (
        "import os, sys; from pathlib import Path; from coldstream.engines.vllm import folder\n"
        "made = Path(sys.argv[1]); made.mkdir(); folder.remove_at_exit(made)\n"
        "child = os.fork()\n"
        "if not child: sys.exit()\n"
        "os.waitpid(child, 0); print(made.exists())"
    )
    said = subprocess.run([sys.executable, "-c", code, str(made)], capture_output=True, text=True, check=True)
    assert said.stdout == "True\n"
    assert not made.exists()
