"""A plan told: in lines for people, and as plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from coldstream.deploy import service
from coldstream.deploy.plan import Plan
from coldstream.deploy.sizing import GIB, Size
from coldstream.deploy.target import Target


def lines(plan: Plan) -> list[tuple[str, str]]:
    """The plan for people: (what, how much)."""
    size = plan.size
    demands = "; ".join(item.says(plan.scaling.max_instances) for item in plan.fit.demands)
    return [
        ("service", f"{plan.target.service} in {plan.target.region}, project {plan.target.project}"),
        ("access", _access(plan.target)),
        *(("model", f"{item.name}: {item.weights.uri} ({item.weights.shape.architecture})") for item in plan.models),
        *(("packed copy", f"{item.name}: {item.packed}") for item in plan.models if item.packed is not None),
        ("engine", f"{size.engine}: {plan.engine_reason}"),
        ("instance", f"{size.machine}, {size.cpu} vCPU, {size.memory_gib} GiB"),
        ("memory", _memory(size)),
        ("host memory", f"{size.host_bytes / GIB:.1f} GiB of {size.memory_gib} GiB while loading"),
        ("concurrency", f"{size.concurrency} requests an instance, {size.context} tokens of context each"),
        ("startup probe", f"GET {service.READY} every {size.probe_period} s, {size.probe_failures} times"),
        ("instances", f"{plan.scaling.min_instances} to {plan.scaling.max_instances}"),
        ("quota", demands),
        ("first token", f"about {size.seconds_to_first_token:.0f} s after a request that finds no instance"),
        ("cost", _cost(size)),
        *(("assumed", text) for text in size.assumptions),
        *_beside(plan.beside),
        *(("warning", text) for text in plan.warnings),
        *(("kept", text) for text in plan.kept),
        *(("instead", text) for text in plan.proposals),
        ("image", plan.image),
        ("revision", plan.revision),
    ]


def _beside(other: Size | None) -> list[tuple[str, str]]:
    """The other engine's start and throughput, with what is assumed of it alone."""
    if other is None:
        return []
    told = (
        f"first token about {other.seconds_to_first_token:.0f} s, {other.tokens_per_second:.0f} tokens/s, "
        f"about {_per_million(other)} per million tokens"
    )
    return [(f"on {other.engine}", told), *((f"on {other.engine}", text) for text in other.assumptions[1:3])]


def _access(target: Target) -> str:
    if target.public:
        return "PUBLIC: anybody who knows the address may use it, at your expense"
    return f"private: {target.invoker_account} and whoever else holds roles/run.invoker"


def _memory(size: Size) -> str:
    parts = {"weights": size.weight_bytes, "keys and values": size.kv_bytes, "activations": size.activation_bytes}
    told = ", ".join(f"{name} {value / GIB:.2f}" for name, value in parts.items())
    place = "GPU" if size.gpu else "instance"
    return f"{size.needed_bytes / GIB:.1f} of {size.device_bytes / GIB:.0f} GiB on the {place} ({told})"


def _cost(size: Size) -> str:
    if not size.priced:
        rest = f"${size.dollars_per_hour:.2f} an hour and instance"
        return f"{rest} without the {size.machine}, whose price is not known here"
    return f"${size.dollars_per_hour:.2f} an hour and instance, about {_per_million(size)} per million tokens"


def _per_million(size: Size) -> str:
    return f"${size.dollars_per_million_tokens:.2f} at {size.tokens_per_second:.0f} tokens/s"


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain data."""
    size = {**asdict(plan.size), "needed_bytes": plan.size.needed_bytes}
    size |= {"machine": plan.size.machine, "gpu": plan.size.gpu}
    # Without the card's price there is no price of tokens, and an hour's is that of the rest.
    size["card_is_priced"] = plan.size.priced
    size["dollars_per_million_tokens"] = plan.size.dollars_per_million_tokens if plan.size.priced else None
    return {
        "target": asdict(plan.target),
        "size": size,
        "engine": {"name": plan.size.engine, "why": plan.engine_reason},
        "beside": None if plan.beside is None else asdict(plan.beside),
        "scaling": asdict(plan.scaling),
        "limited_by": plan.fit.limited_by,
        "image": plan.image,
        "revision": plan.revision,
        "template": dict(plan.template),
        "changes": [asdict(change) for change in plan.changes],
        "proposals": list(plan.proposals),
        "kept": list(plan.kept),
        "warnings": list(plan.warnings),
        "models": [
            {"name": item.name, "revision": item.revision, "packed": item.packed, **asdict(item.weights)}
            for item in plan.models
        ],
    }
