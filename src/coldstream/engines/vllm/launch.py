"""An AsyncLLM of a model's folder, on a loop of its own. Imports vllm, which takes seconds: not for an event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldstream.backends.device import RunDevice
from coldstream.engine.limits import MAX_LOGPROBS
from coldstream.engines.vllm.engine import Served
from coldstream.engines.vllm.handover import FORMAT
from coldstream.engines.vllm.stats import SchedulerView
from coldstream.errors import DeviceUnavailable, ModelError, OutOfMemory, SettingsError, UnsupportedConfig
from coldstream.host.limits import memory_available
from coldstream.settings import EngineSettings, ModelSettings

_PLUGIN = "coldstream"
_MOST_CPU_CACHE = 4 << 30
"""Bytes of keys and values on a CPU, where nothing else is said; at most a third of what is free."""
_GPU_SHARE = 0.9
OURS: Mapping[str, str] = {
    "model": "models.NAME.uri",
    "tokenizer": "models.NAME.uri",
    "served_model_name": "the model's name",
    "load_format": "nothing: the weights are ours to load",
    "dtype": "models.NAME.precision",
    "max_model_len": "models.NAME.max_context",
    "max_num_seqs": "engine.max_sequences",
    "max_num_batched_tokens": "engine.step_tokens",
    "kv_cache_memory_bytes": "engine.kv_bytes",
    "enable_prefix_caching": "engine.prefix_cache",
    "max_logprobs": "nothing: as many as a request may ask for",
    "logprobs_mode": "nothing: those before any filter",
    "structured_outputs_config": "nothing: the library that the native engine has",
    "generation_config": "nothing: a request's defaults are read on our side",
    "skip_tokenizer_init": "nothing: images and grammars need it",
    "model_loader_extra_config": "[load]",
}
"""vLLM's options that a key of ours sets -> that key."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What an engine is made of. `sharing` is how many of a server's models are on vLLM; they divide a GPU's memory."""

    folder: Path
    model: ModelSettings
    engine: EngineSettings
    device: RunDevice
    max_positions: int | None
    sharing: int = 1


def check_settings(model: ModelSettings, engine: EngineSettings, *, device: RunDevice) -> None:
    """Refuse settings that vLLM has nothing for; without vllm.

    Raises:
        UnsupportedConfig, SettingsError: it names the key.
    """
    if model.precision == "int8":
        raise UnsupportedConfig(
            f'models.{model.name}.precision = "int8" is the native engine\'s; on engine vllm take auto, or quantise '
            "with vllm_args"
        )
    if engine.threads is not None and device == "cuda":
        raise SettingsError("engine.threads is for models on a CPU; engine vllm on a GPU has no such setting")
    if not engine.cuda_graphs:
        raise SettingsError(
            f"engine.cuda_graphs is the native engine's; for engine vllm: models.{model.name}.vllm_args = "
            '["--enforce-eager"]'
        )


def launch(wanted: Launch) -> Served:
    """The engine, running: its processes are up, the weights are loaded.

    Raises:
        SettingsError: vLLM does not know an option of `vllm_args`, or a key of ours sets it.
        ModelError: vLLM cannot run the model, in its own words; what its loader failed with is in the folder's report.
        OutOfMemory: it does not fit.
    """
    _prepare_environment(wanted)
    loop = asyncio.new_event_loop()

    def run() -> None:
        loop.run_forever()
        loop.close()

    thread = threading.Thread(target=run, name=f"vllm {wanted.model.name}", daemon=True)
    thread.start()
    try:
        return asyncio.run_coroutine_threadsafe(_launched(wanted, loop, thread), loop).result()
    except BaseException:
        loop.call_soon_threadsafe(loop.stop)
        raise


async def _launched(wanted: Launch, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> Served:
    from vllm.v1.engine.async_llm import AsyncLLM

    view = SchedulerView()
    try:
        llm = AsyncLLM.from_engine_args(engine_arguments(wanted), stat_loggers=[_logger_of(view)])
    except Exception as exc:  # of any kind; vLLM's own log says where
        raise _failure(wanted, exc) from exc
    config = llm.vllm_config.model_config
    return Served(
        llm,
        loop,
        thread,
        sampling_parameters,
        view,
        vocab_size=int(config.get_vocab_size()),
        max_context=int(config.max_model_len),
        marker=_marker(config),
        dtype=str(config.dtype).removeprefix("torch."),
    )


def engine_arguments(wanted: Launch) -> Any:
    """vLLM's AsyncEngineArgs: the model's `vllm_args`, and over them what keys of ours say.

    Raises:
        SettingsError: an option is unknown, or one of ours.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs

    words, defaults = _parsed(wanted.model.vllm_args), _parsed(())
    _refuse_ours(words, defaults)
    for name, value in our_arguments(wanted).items():
        setattr(words, name, value)
    if wanted.sharing > 1 and words.gpu_memory_utilization == defaults.gpu_memory_utilization:
        words.gpu_memory_utilization = round(_GPU_SHARE / wanted.sharing, 3)
    return AsyncEngineArgs.from_cli_args(words)


def _parsed(words: tuple[str, ...]) -> Namespace:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser(exit_on_error=False, add_help=False))

    def refuse(message: str) -> None:
        raise SettingsError(f"vllm_args {list(words)}: {message}")

    parser.error = refuse
    try:
        found: Namespace = parser.parse_args(list(words))
    except (ValueError, TypeError, SystemExit) as exc:
        raise SettingsError(f"vllm_args {list(words)}: {exc}") from exc
    return found


def _refuse_ours(words: Namespace, defaults: Namespace) -> None:
    for name, key in OURS.items():
        if getattr(words, name, None) != getattr(defaults, name, None):
            option = name.replace("_", "-")
            raise SettingsError(f"vllm_args: --{option} is not for vllm_args; what sets it is {key}")


def our_arguments(wanted: Launch) -> dict[str, Any]:
    """What keys of ours say, by the names of AsyncEngineArgs; all of them are in `OURS`."""
    model, engine = wanted.model, wanted.engine
    longest = model.max_context
    if longest is not None and wanted.max_positions is not None:
        longest = min(longest, wanted.max_positions)
    return {
        "model": str(wanted.folder),
        "tokenizer": str(wanted.folder),
        "served_model_name": model.name,
        "load_format": FORMAT,
        "dtype": model.precision,
        "max_model_len": longest or -1,  # what memory allows
        "max_num_seqs": engine.max_sequences,
        "max_num_batched_tokens": engine.step_tokens,
        "kv_cache_memory_bytes": engine.kv_bytes or _cache_bytes(wanted),
        "enable_prefix_caching": engine.prefix_cache,
        "max_logprobs": MAX_LOGPROBS,
        "logprobs_mode": "raw_logprobs",
        "structured_outputs_config": {"backend": "guidance"},
    }


def _cache_bytes(wanted: Launch) -> int | None:
    """On a CPU vLLM would take a share of the machine's memory, not of the container's; a GPU's it measures well."""
    if wanted.device != "cpu":
        return None
    free = memory_available()
    return _MOST_CPU_CACHE if free is None else min(_MOST_CPU_CACHE, free // 3)


def sampling_parameters(keywords: Mapping[str, Any]) -> Any:
    """vLLM's SamplingParams of the keywords that `sampling.arguments` makes."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    more = dict(keywords)
    structured = more.pop("structured_outputs", None)
    if structured is not None:
        more["structured_outputs"] = StructuredOutputsParams(**structured)
    return SamplingParams(output_kind=RequestOutputKind.DELTA, **more)


def _prepare_environment(wanted: Launch) -> None:
    """What vLLM reads from the environment, where it is not set."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would tell its makers about this machine
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # this process has threads, which a fork does not
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and _PLUGIN not in plugins.split(","):
        os.environ["VLLM_PLUGINS"] = f"{plugins},{_PLUGIN}".lstrip(",")
    if wanted.device == "cpu" and wanted.engine.threads is not None:
        cores = sorted(os.sched_getaffinity(0))[: wanted.engine.threads]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))


def _marker(config: Any) -> str | None:
    """The text by which the model's processor knows an image; None for a model that takes text only."""
    if not config.is_multimodal_model:
        return None
    from vllm.model_executor.model_loader.utils import get_model_cls

    try:
        marker: str | None = get_model_cls(config).get_placeholder_str("image", 1)
    except ValueError:  # it hears, or sees films only
        return None
    return marker


def _logger_of(view: SchedulerView) -> Any:
    from vllm.v1.metrics.loggers import StatLoggerBase

    class SchedulerLogger(StatLoggerBase):  # type: ignore[misc, unused-ignore]
        """Keeps what the scheduler says of each step."""

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            """There is one engine."""

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            """See `StatLoggerBase.record`."""
            view.steps += 1
            if scheduler_stats is not None:
                view.running, view.waiting = scheduler_stats.num_running_reqs, scheduler_stats.num_waiting_reqs
                view.kv_used = scheduler_stats.kv_cache_usage
            if iteration_stats is not None:
                view.preemptions += iteration_stats.num_preempted_reqs

        def log_engine_initialized(self) -> None:
            """Nothing: /startup says so."""

    return SchedulerLogger


def _failure(wanted: Launch, exc: Exception) -> Exception:
    if isinstance(exc, SettingsError):
        return exc
    said, where = str(exc), wanted.model.uri
    if "memory" in said.lower():
        return OutOfMemory(f"{where}: vLLM: {said}")
    if "device" in said.lower() or "CUDA" in said:
        return DeviceUnavailable(f"{where}: vLLM: {said}")
    return ModelError(f"{where}: vLLM cannot serve it: {said}")
