"""vLLM's loader for `--load-format runai_streamer`, the one that it accepts for gs://: our stream instead.

    vllm serve gs://bucket/model --load-format runai_streamer

Several processes of one host load one copy: the first one fetches, the others take what it shares (`ranks`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.distributed import get_world_group
from vllm.logger import init_logger
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from coldstream.engines.vllm.handover import FORMAT, LoadReport, ModelSource, checked_extra
from coldstream.engines.vllm.ranks import HostRanks
from coldstream.engines.vllm.weights import WeightSource
from coldstream.errors import ColdstreamError

if TYPE_CHECKING:
    from torch import Tensor

_log = init_logger(__name__)


@register_model_loader(FORMAT)  # type: ignore[untyped-decorator, unused-ignore]
class ColdstreamModelLoader(BaseModelLoader):  # type: ignore[misc, unused-ignore]
    """Fetches what a model's folder names as its source, or the folder itself.

    `--model-loader-extra-config` takes `concurrency` (reads at a time), `memory_limit` (bytes in flight, -1: no bound),
    `verify` ("published" or "required") and `distributed`, which asks for what is done anyway.

    Raises:
        SettingsError: another key, or a value of another kind.
    """

    def __init__(self, load_config: Any) -> None:
        super().__init__(load_config)
        self._extra = checked_extra(load_config.model_loader_extra_config or {})
        self._loads = 0

    def download_model(self, model_config: Any) -> None:
        """Nothing: what is fetched is fetched into the model."""

    def load_weights(self, model: Any, model_config: Any) -> None:
        """Stream the checkpoint into the model; every parameter is filled when this returns.

        Raises:
            ColdstreamError: see `WeightSource.tensors`.
            ValueError: vLLM's, for parameters that no tensor filled.
        """
        began = time.perf_counter()
        folder = Path(model_config.model)
        source = self._source(folder, model_config)
        is_plain = model_config.quantization is None
        self._loads += 1
        try:
            loaded = model.load_weights(self._tensors(folder, source, replaceable=is_plain))
            if is_plain and loaded is not None:  # as vLLM's own loader does
                DefaultModelLoader.track_weights_loading(self, model, loaded, quantized=False)
        except ColdstreamError:
            raise
        except Exception as exc:  # of any kind: the server must hear of it
            self._report(folder, LoadReport("failed", error=("ParameterMismatch", f"{source.uri}: vLLM: {exc}")))
            raise
        _log.info("Loading weights took %.2f seconds", time.perf_counter() - began)

    def _report(self, folder: Path, said: LoadReport) -> None:
        if ModelSource.read(folder) is not None:
            said.write(folder)

    def _source(self, folder: Path, model_config: Any) -> ModelSource:
        found = ModelSource.read(folder) if folder.is_dir() else None
        if found is None:
            found = ModelSource(model_config.model_weights or model_config.model)
        return replace(found, **self._extra)

    def _tensors(self, folder: Path, source: ModelSource, *, replaceable: bool) -> Iterator[tuple[str, Tensor]]:
        has_report = ModelSource.read(folder) is not None
        report = partial(self._report, folder)
        world = get_world_group()
        if world.world_size == 1 or not has_report:
            return WeightSource(source, report=report).tensors(replaceable=replaceable)
        host = HostRanks(
            folder / f"ranks-{_replica()}-{self._loads}",
            followers=_on_this_host(world) - 1,
            deadline=source.deadline,
        )
        if world.local_rank:
            return host.follow(world.local_rank)
        return host.lead(WeightSource(source, report=report).tensors(replaceable=replaceable))


def _on_this_host(world: Any) -> int:
    from vllm.config import get_current_vllm_config

    parallel = get_current_vllm_config().parallel_config
    return int(getattr(parallel, "local_world_size", world.world_size))


def _replica() -> int:
    from vllm.config import get_current_vllm_config

    return int(getattr(get_current_vllm_config().parallel_config, "data_parallel_rank", 0) or 0)
