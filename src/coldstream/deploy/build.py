"""The image: its source in a bucket under the source's digest, and the build of it, begun or waited for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coldstream.deploy import fix, ground, image
from coldstream.deploy.steps import Deployment, Event, poll
from coldstream.deploy.target import Target
from coldstream.errors import CloudUnavailable, ColdstreamError, DeployError, ResourceConflict, ResourceExists


def upload_source(work: Deployment) -> Deployment:
    """The build context, in the source bucket under its own digest; the generation that is built is pinned."""
    context, target = work.plan.context, work.target
    if context is None or built_digest(work) is not None:
        return work
    if ground.ensure_bucket(work.google, target, tell=work.note):
        work = work.making(f"bucket {target.source_bucket}")
    name, archive = source_object(context), context.archive()
    there = work.google.generation(target.source_bucket, name)
    # What lies there under our name need not be ours.
    if there is not None and work.google.content(target.source_bucket, name, there) == archive:
        return replace(work, source=there)
    try:
        source = work.google.upload(target.source_bucket, name, archive, over=there or 0)
    except ResourceExists as exc:
        raise ResourceConflict(f"gs://{target.source_bucket}/{name} was written by another meanwhile") from exc
    work.note(f"uploaded {len(archive) / 1e6:.1f} MB to gs://{target.source_bucket}/{name}")
    return replace(work, source=source).making(f"source gs://{target.source_bucket}/{name}")


def source_object(context: image.Context) -> str:
    """Where the context lies in the source bucket."""
    return f"source/{context.tag}.tar.gz"


def built_digest(work: Deployment) -> str | None:
    """The digest of the image that the plan wants, where it is built already."""
    context = work.plan.context
    if context is None:
        return None
    return work.google.image_digest(work.target.repository_name, "coldstream", context.tag)


def build_image(work: Deployment) -> Deployment:
    """The image: there already, being built already, or built now."""
    context = work.plan.context
    if context is None or built_digest(work) is not None:
        return work
    running = _running_build(work, context)
    if running is not None:
        work.note(f"a build of the same source is running; waiting for it: {running[1]}")
    else:
        running = _start_build(work, context)
        work.note(f"build {running[1]}")
        work = work.making(f"build {running[1]}")
    _watch_build(work, *running)
    return work.making(f"image {work.plan.image}")


Build = tuple[str, str]
"""(location, id)"""


def _running_build(work: Deployment, context: image.Context) -> Build | None:
    for location in work.target.build_locations:
        for item in work.google.builds(location, context.tag):
            if item["status"] in image.RUNNING:
                return location, str(item["id"])
    return None


def _start_build(work: Deployment, context: image.Context) -> Build:
    """Start a build where the project may build: in its region, or globally."""
    *first, last = work.target.build_locations
    for location in first:
        try:
            return location, _create_build(work, context, location)
        except DeployError as exc:
            if image.BARRED_REGION not in str(exc):
                raise
            work.note(f"{exc}; trying {last.rsplit('/', 1)[1]}")
    return last, _create_build(work, context, last)


def _create_build(work: Deployment, context: image.Context, location: str) -> str:
    request = image.build_request(
        work.target, context, source_object(context), _source_of(work), immutable=_immutable(work), wanted=work.wanted
    )

    def create() -> str:
        return work.google.create_build(location, request)

    try:
        return ground.patiently("the build", create, clock=work.clock, tell=work.note)
    except CloudUnavailable:
        # Whether it began is not known: what is running now is it.
        work.clock.sleep(5.0)
        begun = _running_build(work, context)
        return begun[1] if begun is not None and begun[0] == location else create()
    except DeployError as exc:
        advice, grant = image.refused(work.target, str(exc))
        mend = advice if grant is None else f"{advice}; it needs {grant}: {fix.command(grant, work.target)}"
        raise type(exc)(f"{exc}; {mend}" if mend else str(exc)) from exc


def _source_of(work: Deployment) -> int:
    if work.source is None:
        raise DeployError("the source was not uploaded; run this again")
    return work.source


def _immutable(work: Deployment) -> bool:
    """Whether the repository's tags cannot be moved; a repository of our own making allows it."""
    repository = work.google.repository(work.target.repository_name)
    return bool(repository.get("docker_config", {}).get("immutable_tags"))


def _watch_build(work: Deployment, location: str, identity: str) -> None:
    begun, seen = work.clock.now(), frozenset[str]()
    place = f'resource.type="build" AND resource.labels.build_id="{identity}"'
    while True:
        unheard: Mapping[str, Any] = {"status": "WORKING"}
        build = poll(lambda: work.google.build(location, identity), unheard)
        seen = _show_logs(work, place, seen)
        if build["status"] == "SUCCESS":
            return
        if build["status"] not in image.RUNNING:
            raise _build_error(work.target, build)
        waited = work.clock.now() - begun
        if waited > image.BUILD_TIMEOUT + 600:
            raise DeployError(
                f"build {identity} is still {build['status']} after {waited:.0f} s; see {build.get('log_url', '')}"
            )
        work.clock.sleep(5.0)


def _build_error(target: Target, build: Mapping[str, Any]) -> DeployError:
    failed = image.failure(target, build)
    mend = "" if failed.grant is None else f"; it needs {failed.grant}: {fix.command(failed.grant, target)}"
    return DeployError(f"{failed.cause}: {failed.message}{mend}; log: {build.get('log_url', '')}")


def _show_logs(work: Deployment, place: str, seen: frozenset[str]) -> frozenset[str]:
    try:
        entries = work.google.log_entries(work.target.project, place, newest=200)
    except ColdstreamError:
        # Logs are a comfort here: a caller who may not read them still deploys, and the outcome names the log's URL.
        return seen
    for entry in entries:
        if entry["id"] not in seen:
            work.tell(Event(work.step, "log", entry["text"]))
    return seen | {entry["id"] for entry in entries}
