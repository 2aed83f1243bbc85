"""Whether a model needs torch: told before the checkpoint is open where that can be, and for certain by its plan."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from coldstream.backends.device import Machine
from coldstream.errors import MissingExtra
from coldstream.loading.run_plan import RunPlan
from coldstream.model.config import ModelConfig, is_native
from coldstream.settings import ModelSettings


def has_torch() -> bool:
    """Whether it is installed; does not import it."""
    return importlib.util.find_spec("torch") is not None


def expects_torch(model: ModelSettings) -> bool:
    """Whether the settings and this machine say so already, and it can be had.

    Of an architecture that only transformers has, only config.json tells.
    """
    asked = model.device == "cuda" or model.precision == "bfloat16" or model.engine == "vllm"
    by_a_gpu = model.device == "auto" and model.precision != "int8"
    return has_torch() and (asked or (by_a_gpu and Machine.of_this_machine().trouble is None))


def require_torch(plan: RunPlan, config: Mapping[str, Any]) -> None:
    """Return when a model that is planned so can be made, as far as torch is concerned.

    Raises:
        MissingExtra: torch is not installed; with the line that installs it.
        UnknownArchitecture, UnsupportedConfig: only transformers could run this config; says why.
    """
    if not plan.needs_torch or has_torch():
        return
    if not is_native(config):
        ModelConfig.from_json(config)
    raise MissingExtra(
        f"precision {plan.precision} on {plan.device} needs torch; run: pip install 'coldstream[torch]', "
        "or take --precision int8 or float32 on a CPU"
    )
