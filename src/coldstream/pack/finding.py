"""Which packed copy a checkpoint has, for those who look at it without loading it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coldstream.backends.cpu.packed_copy import check_fits
from coldstream.errors import ColdstreamError
from coldstream.settings import WeightsFrom
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.packed.forms import CPU_INT8
from coldstream.weights.packed.opening import CopyPlace, WithCopy, open_with_copy
from coldstream.weights.transfer.progress import Progress


async def find_copy(
    uri: str, packed: str = "auto", *, weights: WeightsFrom = "index", progress: Progress | None = None
) -> WithCopy:
    """A checkpoint with the copy that a start on a CPU would use; `packed` as in settings.

    Raises:
        StoreError, CheckpointError: of the checkpoint. LocationError: `packed` is no folder.
    """
    place = CopyPlace.of(Location.parse(uri), CPU_INT8, packed)
    found = await open_with_copy(uri, place, weights=weights, progress=progress)
    if found.copy is None:
        return found
    try:
        check_fits(found.checkpoint.config, found.checkpoint.tensors.values(), found.copy.arriving.tensors)
    except ColdstreamError as exc:
        found.copy.arriving.store.close_idle()
        return replace(found, copy=None, why_not=str(exc))
    return found


def as_json(found: WithCopy) -> dict[str, Any] | None:
    """A copy as plain data, sizes in bytes; None where there is none at all."""
    if found.copy is None:
        return None if found.why_not is None else {"fits": False, "why_not": found.why_not}
    manifest, arriving = found.copy.manifest, found.copy.arriving
    return {
        "fits": True,
        "uri": str(arriving.location),
        "form": manifest.form,
        "made_by": manifest.made_by,
        "bytes": manifest.total_bytes,
        "files": {name: file.size for name, file in manifest.files.items()},
    }
