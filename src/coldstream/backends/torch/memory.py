"""Memory for keys and values: a part of the host's, or what a GPU has beside the weights and a step."""

from __future__ import annotations

import torch

from coldstream.backends.host_memory import host_kv_bytes
from coldstream.model.memory import WorkspaceShape, beside_weights, graph_bytes, workspace_bytes


def kv_bytes(
    config: WorkspaceShape,
    dtype: torch.dtype,
    device: torch.device,
    *,
    step_tokens: int,
    rows: int,
    unallocated: int,
    graphs: bool = False,
) -> int:
    """Bytes for keys and values where the settings name none: of the host's memory, or of the GPU's.

    A step has at most `step_tokens` tokens and `rows` sequences; weights will yet take `unallocated` bytes there,
    and recorded steps their own, with `graphs`.

    Raises:
        OutOfMemory: the GPU has no room beside the weights.
    """
    if device.type == "cpu":
        return host_kv_bytes()
    workspace = workspace_bytes(config, tokens=step_tokens, rows=rows, item=dtype.itemsize)
    if graphs:
        workspace += graph_bytes(config, rows=rows, item=dtype.itemsize)
    return beside_weights(*torch.cuda.mem_get_info(device), unallocated=unallocated, workspace=workspace)
