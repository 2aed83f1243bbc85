"""After a deployment: status, logs, rollback, destroy. Each looks first, and says what it found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from coldstream.deploy import fix, places, service, traffic
from coldstream.deploy.clock import Clock
from coldstream.deploy.evidence import Said, ask
from coldstream.deploy.google import Google, wait
from coldstream.deploy.service import PREVIOUS_ANNOTATION
from coldstream.deploy.target import LABELS, Kind, Resource, Target
from coldstream.errors import CloudUnavailable, DeployError, ResourceNotFound

Tell = Callable[[str], None]


# Status


def status(google: Google, target: Target) -> dict[str, Any]:
    """The service, its revisions and where traffic flows, as plain data.

    Raises:
        ResourceNotFound: it is not deployed.
    """
    deployed = deployed_service(google, target)
    shares = service.serving(deployed)
    return {
        "service": target.service_name,
        "url": deployed.get("uri", ""),
        "access": "public" if deployed.get("invoker_iam_disabled") else "private",
        "min_instances": int(deployed.get("scaling", {}).get("min_instance_count", 0)),
        "revisions": [_revision(item, shares, deployed) for item in google.revisions(target.service_name)],
    }


def deployed_service(google: Google, target: Target) -> Mapping[str, Any]:
    """The service.

    Raises:
        ResourceNotFound: there is none.
    """
    deployed = google.service(target.service_name)
    if deployed is None:
        raise ResourceNotFound(f"no service {target.service} in {target.region}; `coldstream deploy` makes it")
    return deployed


def _revision(item: Mapping[str, Any], shares: Mapping[str, int], deployed: Mapping[str, Any]) -> dict[str, Any]:
    name = item["name"].rsplit("/", 1)[1]
    conditions = [entry for entry in item.get("conditions", []) if entry.get("type_") == "Ready"]
    condition: Mapping[str, Any] = conditions[0] if conditions else {}
    container = item["containers"][0]
    tags = [entry["tag"] for entry in deployed.get("traffic", []) if entry.get("revision") == name and entry.get("tag")]
    return {
        "name": name,
        "percent": shares.get(name, 0),
        "tags": tags,
        "state": str(condition.get("state", "")).removeprefix("CONDITION_").lower(),
        "message": condition.get("message", ""),
        "image": container.get("image", ""),
        "limits": container.get("resources", {}).get("limits", {}),
        "max_instances": int(item.get("scaling", {}).get("max_instance_count", 0)),
        "model": item.get("annotations", {}).get(service.MODEL_ANNOTATION, ""),
        "made": item.get("create_time", ""),
    }


# Access


def token(google: Google, target: Target) -> str:
    """An identity token of the invoker for the service.

    Raises:
        ResourceNotFound: the service is not deployed.
        PermissionRefused: the caller may not make tokens of the invoker.
    """
    return google.identity_token(target.invoker_account, str(deployed_service(google, target)["uri"]))


# Logs


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which entries: those of the service's containers, from a moment on where one is given."""

    target: Target
    revision: str | None = None
    since: str | None = None

    def text(self, since: str | None) -> str:
        """The filter (https://cloud.google.com/logging/docs/view/logging-query-language)."""
        terms = ['resource.type="cloud_run_revision"', f'resource.labels.service_name="{self.target.service}"']
        if self.revision:
            terms.append(f'resource.labels.revision_name="{self.revision}"')
        if since:
            terms.append(f'timestamp>="{since}"')
        return " AND ".join(terms)


def logs(
    google: Google, query: LogQuery, *, newest: int, follow: bool, clock: Clock, every: float = 3.0
) -> Iterator[Mapping[str, Any]]:
    """Entries, the oldest first; with `follow` it goes on until the consumer stops."""
    since = query.since
    seen: dict[str, str] = {}
    while True:
        try:
            entries = google.log_entries(query.target.project, query.text(since), newest=newest)
        except CloudUnavailable:
            if not follow:
                raise
            entries = ()
        for entry in entries:
            if entry["id"] not in seen:
                yield entry
        if not follow:
            return
        # Entries of one moment share a timestamp: ask from there on again, and know them by their id.
        since = entries[-1]["time"] if entries else since
        seen = {entry["id"]: entry["time"] for entry in entries} | {
            key: at for key, at in seen.items() if since is not None and at >= since
        }
        clock.sleep(every)


# Rollback


def rollback(google: Google, target: Target, *, to: str | None, clock: Clock, tell: Tell) -> str:
    """All traffic to an earlier revision: the one named, or the one that had it before; its name.

    Raises:
        DeployError: there is none, or it is not ready.
    """
    deployed = deployed_service(google, target)
    shares = service.serving(deployed)
    chosen = to or deployed.get("annotations", {}).get(PREVIOUS_ANNOTATION)
    known = {item["name"].rsplit("/", 1)[1]: item for item in google.revisions(target.service_name)}
    if chosen is None:
        raise DeployError(f"no earlier revision of {target.service} is known; choose one with --to: {', '.join(known)}")
    if chosen not in known:
        raise DeployError(f"no revision {chosen}; there are {', '.join(known)}")
    if _revision(known[chosen], shares, deployed)["state"] != "succeeded":
        raise DeployError(f"revision {chosen} is not ready; traffic stays where it is")
    if shares == {chosen: 100}:
        tell(f"all traffic is on {chosen} already")
        return str(chosen)
    before = max(shares, key=lambda name: shares[name]) if shares else chosen
    notes = {PREVIOUS_ANNOTATION: before, service.PROVEN_ANNOTATION: chosen}
    pending = traffic.move(google, deployed, [service.to_revision(chosen, 100)], notes=notes)
    wait(pending, clock=clock, limit=300, tick=lambda waited: tell(f"moving traffic: {waited:.0f} s"))
    tell(f"all traffic is on {chosen}; it was {_told(shares)}")
    return str(chosen)


def _told(shares: Mapping[str, int]) -> str:
    return ", ".join(f"{percent} % on {name}" for name, percent in shares.items()) or "nowhere"


# Destroy


@dataclass(frozen=True, slots=True)
class Remains:
    """Something of a deployment that is still there, and what it costs."""

    what: str
    cost: str
    remove: Callable[[], None]


def inventory(
    google: Google, target: Target, *, clock: Clock, tell: Tell
) -> tuple[tuple[Remains, ...], tuple[str, ...]]:
    """What destroy would remove, in order; and what it leaves alone, with the reason.

    The repository serves the services of a region, the source bucket and the build account those of the project, and
    the accounts that read and call those of one name: each goes with the last that uses it.
    """
    found: list[Remains] = []
    left = [f"model bucket {name}: yours" for name in target.model_buckets]
    deployed = google.service(target.service_name)
    if deployed is not None:
        least = int(deployed.get("scaling", {}).get("min_instance_count", 0))
        cost = f"{least} instances around the clock" if least else "nothing while nobody asks"
        found.append(Remains(f"service {target.service}", cost, lambda: _remove_service(google, target, clock, tell)))
    found += _job(google, target, left, clock, tell)
    others = _others(google, target)
    found += _shared(google, target, others, left, clock, tell)
    own = _own_accounts(target, others, left)
    granting = _places(target, deployed, going=frozenset(item.what for item in found))
    found += [item for email in own for item in _account(google, target, email, granting, clock)]
    return tuple(found), tuple(left)


@dataclass(frozen=True, slots=True)
class _Others:
    """Our services beside the one that goes, as (region, name); `unseen` are regions that may not be looked into."""

    services: tuple[tuple[str, str], ...]
    unseen: tuple[str, ...]

    def told(self, services: Iterable[tuple[str, str]]) -> str:
        named = [f"{name} in {region}" for region, name in services]
        return ", ".join(named + [f"{region} could not be looked into" for region in self.unseen[:3]])


def _others(google: Google, target: Target) -> _Others:
    regions = sorted({*places.COUNTRIES, target.region})
    with ThreadPoolExecutor(24) as pool:
        asked = {
            region: pool.submit(ask, f"services.list {region}", _services(google, target, region)) for region in regions
        }
        said = {region: future.result() for region, future in asked.items()}
    services = [
        (region, item["name"].rsplit("/", 1)[1])
        for region, answer in said.items()
        for item in answer.value or ()
        if item["name"] != target.service_name and _ours(item)
    ]
    return _Others(tuple(services), tuple(region for region, answer in said.items() if answer.error is not None))


def _services(google: Google, target: Target, region: str) -> Callable[[], tuple[Mapping[str, Any], ...]]:
    return lambda: google.services(f"projects/{target.project}/locations/{region}")


def _shared(
    google: Google, target: Target, others: _Others, left: list[str], clock: Clock, tell: Tell
) -> list[Remains]:
    """The repository, unless this region has another service; the source bucket, unless the project has one."""
    found = []
    here = [item for item in others.services if item[0] == target.region]
    if here or target.region in others.unseen:
        left.append(f"repository {target.repository}: {others.told(here)}")
    else:
        found += _repository(google, target, left, clock, tell)
    if others.services or others.unseen:
        left.append(f"bucket {target.source_bucket} and the build account: {others.told(others.services)}")
    else:
        found += _source_bucket(google, target, left)
    return found


def _own_accounts(target: Target, others: _Others, left: list[str]) -> list[str]:
    own = [email for email in target.accounts if target.dedicated(email)]
    if others.services or others.unseen:
        own = [email for email in own if email != target.build_account]
    same = [item for item in others.services if item[1] == target.service]
    if same or others.unseen:
        left.append(f"the accounts of {target.service}: {others.told(same)}")
        return []
    return own


def _remove_service(google: Google, target: Target, clock: Clock, tell: Tell) -> None:
    pending = google.delete_service(target.service_name)
    wait(pending, clock=clock, limit=300, tick=lambda waited: tell(f"removing the service: {waited:.0f} s"))


def _job(google: Google, target: Target, left: list[str], clock: Clock, tell: Tell) -> list[Remains]:
    """The job of a script whose run was ended by force; one that ended by itself removed its own."""
    said: Said[Mapping[str, Any] | None] = ask("jobs.get", lambda: google.job(target.job_name))
    if said.value is not None and _ours(said.value):
        what = f"job {target.job_name.rsplit('/', 1)[1]}"
        return [Remains(what, "nothing while it does not run", lambda: _remove_job(google, target, clock, tell))]
    if said.value is not None or said.error is not None:
        left.append(f"a job of the service: {'not made by coldstream' if said.value else said.why_not}")
    return []


def _remove_job(google: Google, target: Target, clock: Clock, tell: Tell) -> None:
    pending = google.delete_job(target.job_name)
    wait(pending, clock=clock, limit=300, tick=lambda waited: tell(f"removing the job: {waited:.0f} s"))


def _repository(google: Google, target: Target, left: list[str], clock: Clock, tell: Tell) -> list[Remains]:
    said: Said[Mapping[str, Any]] = ask("repositories.get", lambda: google.repository(target.repository_name))
    if said.value is not None and _ours(said.value):
        cost = "$0.10 a GiB and month for its images"
        what = f"repository {target.repository}"
        return [Remains(what, cost, lambda: _remove_repository(google, target, clock, tell))]
    if not said.missing:
        left.append(f"repository {target.repository}: {'not made by coldstream' if said.value else said.why_not}")
    return []


def _source_bucket(google: Google, target: Target, left: list[str]) -> list[Remains]:
    said: Said[Mapping[str, Any]] = ask("buckets.get", lambda: google.bucket(target.source_bucket))
    project: Said[Mapping[str, str]] = ask("projects.get", lambda: google.project(target.project))
    owned = said.value is not None and said.value["project_number"] == (project.value or {}).get("number")
    if said.value is not None and owned and _ours(said.value):
        cost = "$0.02 a GiB and month for sources"
        return [Remains(f"bucket {target.source_bucket}", cost, lambda: _remove_bucket(google, target.source_bucket))]
    if not said.missing:
        left.append(f"bucket {target.source_bucket}: {'not made by coldstream' if said.value else said.why_not}")
    return []


def _ours(resource: Mapping[str, Any]) -> bool:
    return dict(resource.get("labels", {})).items() >= LABELS.items()


def _remove_repository(google: Google, target: Target, clock: Clock, tell: Tell) -> None:
    pending = google.delete_repository(target.repository_name)
    wait(pending, clock=clock, limit=300, tick=lambda waited: tell(f"removing the repository: {waited:.0f} s"))


def _remove_bucket(google: Google, name: str) -> None:
    for item in google.objects(name):
        google.delete_object(name, item)
    google.delete_bucket(name)


def _places(target: Target, deployed: Mapping[str, Any] | None, *, going: frozenset[str]) -> tuple[Resource, ...]:
    """Whatever outlives a deployment and may name its accounts in its policy."""
    buckets = dict.fromkeys((*target.model_buckets, *target.photo_buckets, *_buckets_of(deployed)))
    shared = [target.resource(Kind.BUCKET, target.source_bucket), target.resource(Kind.REPOSITORY)]
    shared = [place for place in shared if str(place) not in going]
    secret = [] if target.secret is None else [target.resource(Kind.SECRET)]
    ours = [target.resource(Kind.BUCKET, name) for name in buckets]
    return (target.resource(Kind.PROJECT), *ours, *shared, *secret)


def _buckets_of(deployed: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The gs:// buckets of the configuration that a service carries; destroying does not need the file."""
    containers = (deployed or {}).get("template", {}).get("containers", [])
    texts = [str(item.get("value", "")) for container in containers for item in container.get("env", [])]
    return tuple(dict.fromkeys(match for text in texts for match in re.findall(r"gs://([a-z0-9][a-z0-9._-]+)", text)))


def _account(google: Google, target: Target, email: str, granting: tuple[Resource, ...], clock: Clock) -> list[Remains]:
    """Its grants elsewhere, then the account: a grant of an account that is gone would stay in the policy for ever."""
    if ask("serviceAccounts.get", lambda: google.account_exists(target.project, email)).value is not True:
        return []
    member = f"serviceAccount:{email}"
    granted = [place for place in granting if _names(google, place, member)]
    bindings = [
        Remains(f"grants of {email} on {place}", "nothing", _ungrant(google, place, member, clock)) for place in granted
    ]
    return [*bindings, Remains(f"account {email}", "nothing", lambda: google.delete_account(target.project, email))]


def _names(google: Google, place: Resource, member: str) -> bool:
    said = ask(f"getIamPolicy on {place}", lambda: google.policy(place))
    return said.value is not None and any(member in item["members"] for item in said.value["bindings"])


def _ungrant(google: Google, place: Resource, member: str, clock: Clock) -> Callable[[], None]:
    def action() -> None:
        fix.remove(google, place, member, clock=clock)

    return action


def destroy(items: tuple[Remains, ...], *, tell: Tell) -> None:
    """Remove what an inventory listed. What is gone already is no error; what fails is named, and the rest goes on.

    Raises:
        DeployError: something is still there.
    """
    failed = []
    for item in items:
        said = ask(item.what, item.remove)
        if said.error is None or said.missing:
            tell(f"removed {item.what}")
        else:
            failed.append(f"{item.what} ({said.why_not})")
            tell(f"could not remove {item.what}")
    if failed:
        raise DeployError(f"still there: {'; '.join(failed)}. Run this again: what is gone stays gone")
