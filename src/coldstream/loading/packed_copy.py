"""Whether a model starts from a packed copy: which form fits how it will run, and whether what was found is it."""

from __future__ import annotations

from coldstream.backends.device import Machine, choose_device
from coldstream.errors import ColdstreamError
from coldstream.host.cpu import CpuFeatures
from coldstream.loading.run_plan import RunPlan
from coldstream.model.precision import choose_precision
from coldstream.settings import ModelSettings
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.packed.forms import CPU_INT8
from coldstream.weights.packed.opening import CopyPlace, PackedCopy, WithCopy

OFF = "off"


def find_place(model: ModelSettings) -> CopyPlace | None:
    """Where to look for a copy, as far as settings and machine tell before the checkpoint is open; None: nowhere.

    Raises:
        LocationError: a URI of the settings is none.
    """
    form = _form(model)
    return None if form is None else CopyPlace.of(Location.parse(model.uri), form, model.packed)


def choose_copy(found: WithCopy, plan: RunPlan, model: ModelSettings) -> tuple[PackedCopy | None, str | None]:
    """The copy to start from, or None with the reason, where there is one to be told."""
    if plan.engine != "native" or (plan.device, plan.precision) != ("cpu", "int8") or plan.needs_torch:
        if found.copy is not None:
            found.copy.arriving.store.close_idle()
        named = model.packed not in ("auto", OFF)
        why = f"{plan.precision} on {plan.device} by engine {plan.engine} is what runs here"
        return None, _unused(f"{model.packed}: a packed copy is int8 for a CPU, and {why}") if named else None
    if found.copy is None:
        return None, _unused(found.why_not) if found.why_not is not None else None
    from coldstream.backends.cpu.packed_copy import check_fits

    checkpoint, arriving = found.checkpoint, found.copy.arriving
    try:
        check_fits(checkpoint.config, checkpoint.tensors.values(), arriving.tensors)
    except ColdstreamError as exc:
        arriving.store.close_idle()
        return None, _unused(f"{arriving.location}: {exc}")
    return found.copy, None


def _form(model: ModelSettings) -> str | None:
    """What could run here of an architecture of ours, by its name; None where nothing is packed for it."""
    if model.engine == "vllm":
        return None
    try:
        device, _ = choose_device(model.device, precision=model.precision, machine=Machine.of_this_machine())
    except ColdstreamError:  # the plan will say it
        return None
    if device != "cpu":
        return None
    precision, _ = choose_precision(model.precision, device=device, cpu=CpuFeatures.of_this_machine(), stored=None)
    return CPU_INT8 if precision == "int8" else None


def _unused(why: str) -> str:
    return f"the packed copy is not used: {why}; the model's own files are streamed"
