"""What a new revision has to answer before it is trusted, and the traffic that it earns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coldstream.deploy import service, smoke
from coldstream.deploy.google import Google, Pending, wait
from coldstream.deploy.service import CANDIDATE
from coldstream.deploy.smoke import Door
from coldstream.deploy.steps import Deployment
from coldstream.errors import ResourceConflict


def door(work: Deployment) -> Door:
    """The candidate's address, with identity tokens of the invoker for the service itself."""
    deployed = work.deployed or {}
    audience = str(deployed["uri"])
    url = service.tag_url(deployed, CANDIDATE) or audience
    key = None if work.target.secret is None else _first_key(work.google.secret_value(work.target.secret))
    if work.target.public:
        return Door(url, None, key)
    return Door(url, lambda: work.google.identity_token(work.target.invoker_account, audience), key)


def _first_key(text: str) -> str:
    """Keys are separated by commas or lines, and a line that begins with # is a comment."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return next((key.strip() for line in lines for key in line.split(",") if key.strip()), "")


def smoke_test(work: Deployment) -> Deployment:
    if _proven(work.deployed) == work.revision:
        return work
    entrance = door(work)
    smoke.wait_until_ready(entrance, clock=work.clock, tick=work.note)
    smoke.check(entrance, work.questions, tell=work.note)
    return work


def _proven(deployed: Mapping[str, Any] | None) -> str | None:
    """The last revision that passed its smoke test; written together with the traffic that it earned."""
    found: str | None = (deployed or {}).get("annotations", {}).get(service.PROVEN_ANNOTATION)
    return found


def move_traffic(work: Deployment) -> Deployment:
    deployed = work.google.service(work.target.service_name)
    if deployed is None:
        raise ResourceConflict(f"service {work.target.service} is gone; somebody else removed it")
    shares = service.serving(deployed)
    wanted = _shares(work, shares)
    if shares == wanted and _proven(deployed) == work.revision:
        return replace(work, deployed=deployed)
    traffic = [
        service.to_revision(name, percent, CANDIDATE if name == work.revision else "")
        for name, percent in wanted.items()
    ]
    notes = {service.PROVEN_ANNOTATION: work.revision}
    if (previous := _previous(work, shares)) is not None:
        notes[service.PREVIOUS_ANNOTATION] = previous
    moved = move(work.google, deployed, traffic, notes=notes)
    wait(moved, clock=work.clock, limit=300, tick=lambda waited: work.note(f"moving traffic: {waited:.0f} s"))
    work.note(", ".join(f"{percent} % to {name}" for name, percent in wanted.items()))
    return replace(work, deployed=work.google.service(work.target.service_name)).making("traffic")


def _shares(work: Deployment, shares: Mapping[str, int]) -> dict[str, int]:
    others = {name: percent for name, percent in shares.items() if name != work.revision}
    if work.canary == 100 or not others:
        return {work.revision: 100}
    stable = max(others, key=lambda name: others[name])
    return {stable: 100 - work.canary, work.revision: work.canary}


def _previous(work: Deployment, shares: Mapping[str, int]) -> str | None:
    others = {name: percent for name, percent in shares.items() if name != work.revision}
    return max(others, key=lambda name: others[name]) if others else None


def move(
    google: Google, deployed: Mapping[str, Any], traffic: list[dict[str, Any]], *, notes: Mapping[str, str]
) -> Pending:
    """Change where traffic flows, and nothing else; `notes` are annotations that remember it."""
    spec = {key: deployed[key] for key in ("name", "etag") if key in deployed}
    spec |= {"annotations": {**deployed.get("annotations", {}), **notes}, "traffic": traffic}
    return google.update_service(spec, mask=("annotations", "traffic"), validate_only=False)
