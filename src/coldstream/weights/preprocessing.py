"""transformers' own tokenizer and processor of a checkpoint. Needs the `transformers` extra; imports no torch itself.

transformers reads files. It gets them in a folder in memory, which is gone when this returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldstream.errors import MissingExtra, SettingsError, TokenizerError
from coldstream.weights.checkpoint.checkpoint import Checkpoint, open_checkpoint
from coldstream.weights.checkpoint.small_files import remove_folder, write_folder
from coldstream.weights.transfer.own_loop import run_here

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

_WITHOUT_EFFECT = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""They say where on the Hugging Face hub files come from."""


def tokenizer(uri: str | Checkpoint, **kwargs: Any) -> PreTrainedTokenizerBase:
    """What `AutoTokenizer.from_pretrained` makes of the checkpoint's files, which are read and verified here.

    Args:
        uri: the checkpoint's folder, or a checkpoint that is open already.
        kwargs: handed to `AutoTokenizer.from_pretrained`.

    Raises:
        MissingExtra: transformers is not installed.
        TokenizerError: transformers can make none of these files.
        SettingsError: an argument that has no effect here.
        StoreError, CheckpointError.
    """
    made: PreTrainedTokenizerBase = _made("AutoTokenizer", "tokenizer", uri, kwargs)
    return made


def processor(uri: str | Checkpoint, **kwargs: Any) -> ProcessorMixin:
    """What `AutoProcessor.from_pretrained` makes of the checkpoint's files: for a model that sees, its tokenizer and
    its image processor as one object; for one that does not, transformers gives its tokenizer.

    Raises:
        As `tokenizer`.
    """
    made: ProcessorMixin = _made("AutoProcessor", "processor", uri, kwargs)
    return made


def transformers_library(name: str) -> Any:
    """The module; `name` is what needs it.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import transformers
    except ImportError as exc:
        raise MissingExtra(f"{name} needs transformers; run: pip install 'coldstream[transformers]'") from exc
    return transformers


def transformers_with_torch(name: str) -> Any:
    """The module, where it can make models; `name` is what needs it.

    Raises:
        MissingExtra: torch or transformers is not installed.
    """
    try:
        import torch  # noqa: F401
    except ImportError as exc:
        raise MissingExtra(f"{name} needs torch; run: pip install 'coldstream[torch,transformers]'") from exc
    return transformers_library(name)


def _made(factory: str, name: str, uri: str | Checkpoint, kwargs: Mapping[str, Any]) -> Any:
    for option in _WITHOUT_EFFECT:
        if option in kwargs:
            raise SettingsError(f"{name}: {option} has no effect on a checkpoint in a bucket; leave it out")
    read = getattr(transformers_library(f"coldstream.{name}"), factory).from_pretrained
    checkpoint = uri if isinstance(uri, Checkpoint) else open_checkpoint(uri)
    where = str(checkpoint.location)
    made = _from_files(
        checkpoint, lambda folder: read(folder, **kwargs), f"{where}: transformers makes no {name} of it"
    )
    for part in (made, getattr(made, "tokenizer", None)):
        if part is not None and hasattr(part, "name_or_path"):
            part.name_or_path = where
    return made


def _from_files(checkpoint: Checkpoint, make: Callable[[Path], Any], failure: str) -> Any:
    folder = run_here(_folder(checkpoint))
    try:
        return make(folder)
    except (OSError, ValueError, ImportError) as exc:
        raise TokenizerError(f"{failure}: {exc}") from exc
    finally:
        remove_folder(folder)


async def _folder(checkpoint: Checkpoint) -> Path:
    try:
        return await write_folder(checkpoint)
    finally:
        checkpoint.store.close_idle()
