"""A transformers model whose parameters are the streamed buffers. Needs the `transformers` extra."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from coldstream.errors import ParameterMismatch, UnknownArchitecture
from coldstream.weights.checkpoint.checkpoint import Checkpoint, open_checkpoint
from coldstream.weights.load import load_state_dict
from coldstream.weights.preprocessing import transformers_library, transformers_with_torch
from coldstream.weights.transfer.progress import Progress
from coldstream.weights.transfer.stream import StreamOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def from_pretrained(
    uri: str | Checkpoint,
    *,
    model_class: type[PreTrainedModel] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    options: StreamOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """The model in eval mode, its parameters views of the buffers that the bytes landed in.

    Names that transformers maps one to one (Gemma 3's `language_model.model.`, say) are views as well, and tied
    parameters share one. Copied is what transformers has to compute: the experts of Mixtral, Qwen2-MoE and the like,
    which lie one by one in the file and are one tensor in the model; anything whose dtype is not the one asked for, or
    not that of most bytes; and what a class keeps in another precision (`_keep_in_fp32_modules`). A tensor larger than
    a read (see `StreamOptions`) is assembled once and then used as it is.

    Args:
        uri: the checkpoint's folder, or a checkpoint that is open already.
        model_class: a concrete transformers class; None takes the one that `architectures` of config.json names for
            its `model_type`, or else AutoModelForCausalLM's.
        kwargs: handed to the class's own `from_pretrained`.

    Raises:
        MissingExtra: torch or transformers is not installed.
        UnknownArchitecture: transformers has no such class.
        ParameterMismatch: a parameter is missing, left over, misshapen, or still without memory.
        StoreError, CheckpointError.
    """
    transformers_with_torch("coldstream.from_pretrained")
    checkpoint = uri if isinstance(uri, Checkpoint) else open_checkpoint(uri)
    model_class = model_class or _class_of(checkpoint)
    state = load_state_dict(checkpoint, device=device, options=options, progress=progress)
    # The annotation of transformers leaves out that output_loading_info makes it a pair.
    loaded: Any = model_class.from_pretrained(
        None,
        config=_config(checkpoint, model_class),
        state_dict=state,
        dtype=dtype or _main_dtype(state),
        output_loading_info=True,
        **kwargs,
    )
    model: PreTrainedModel
    model, info = loaded
    _require_complete(model, info, str(checkpoint.location))
    _set_generation_config(model, checkpoint)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _class_of(checkpoint: Checkpoint) -> type[PreTrainedModel]:
    library, model_type = transformers_library("coldstream.from_pretrained"), checkpoint.config.get("model_type")
    names = checkpoint.config.get("architectures") or []
    by_type = library.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    for name in [*(name.removeprefix("FSDP") for name in names), *([by_type] if by_type else [])]:
        found: type[PreTrainedModel] | None = getattr(library, name, None)
        if found is not None and model_type in (None, getattr(found.config_class, "model_type", None)):
            return found
    raise UnknownArchitecture(
        f"{checkpoint.location}: transformers has no class for architectures={names}; pass model_class="
    )


def _config(checkpoint: Checkpoint, model_class: type[PreTrainedModel]) -> Any:
    config_class = model_class.config_class
    if config_class is None:
        raise UnknownArchitecture(f"{model_class.__name__} has no config class; pass a concrete model_class=")
    config = dict(checkpoint.config)
    if all(info.dtype in _FLOATS for info in checkpoint.tensors.values()):
        config.pop("quantization_config", None)  # left over from a training that was; the weights are not quantised
    return config_class.from_dict(config)


def _main_dtype(state: dict[str, torch.Tensor]) -> torch.dtype | None:
    """The dtype of most bytes; with any other one transformers would convert, and so copy."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in state.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] += tensor.nbytes
    return sizes.most_common(1)[0][0] if sizes else None


def _require_complete(model: PreTrainedModel, info: dict[str, Any], uri: str) -> None:
    problems = {
        "missing": info.get("missing_keys"),
        "unexpected": info.get("unexpected_keys"),
        "misshapen": info.get("mismatched_keys"),
        "without memory": [name for name, item in [*model.named_parameters(), *model.named_buffers()] if item.is_meta],
    }
    found = [f"{kind}: {_some(names)}" for kind, names in problems.items() if names]
    if found:
        raise ParameterMismatch(f"{uri}: {type(model).__name__} does not fit this checkpoint; {'; '.join(found)}")


def _some(names: Any) -> str:
    listed = sorted(map(str, names))
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def _set_generation_config(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    if checkpoint.generation_config is not None and model.can_generate():
        model.generation_config = transformers_library("coldstream.from_pretrained").GenerationConfig.from_dict(
            dict(checkpoint.generation_config)
        )
