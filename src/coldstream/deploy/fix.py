"""`doctor --fix`: the grants that the checks named, made, undone, or written down for the person who may.

The remedy is derived from the report; `remedy` is pure. A grant is added under its policy's etag, and then asked for
until it acts: IAM takes two minutes, at times seven or more, and nothing is granted twice meanwhile.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from coldstream.deploy import access, ground
from coldstream.deploy.access import GRANTING, MAKING, Grant, Make
from coldstream.deploy.clock import Clock
from coldstream.deploy.doctor import Report
from coldstream.deploy.evidence import Evidence
from coldstream.deploy.google import Google
from coldstream.deploy.target import LABELS, Kind, Resource, Target
from coldstream.errors import CloudUnavailable, DeployError, ResourceConflict

PATIENCE = 900.0
ATTEMPTS = 5
# Owner and editor are never granted, whatever a table says.
FORBIDDEN = frozenset({"roles/owner", "roles/editor", "roles/viewer"})

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Remedy:
    """What mends a report, in order: things to make, then grants; and which of both the caller may do."""

    makes: tuple[Make, ...]
    grants: tuple[Grant, ...]
    caller_may: frozenset[Make | Grant]

    @property
    def mine(self) -> tuple[Make | Grant, ...]:
        return tuple(item for item in self.all if item in self.caller_may)

    @property
    def all(self) -> tuple[Make | Grant, ...]:
        """In the order in which they can be done: what is encrypted with a key is made once its users may use it."""
        apis = tuple(item for item in self.makes if item.apis)
        keys = tuple(item for item in self.grants if item.resource.kind is Kind.KEY)
        return tuple(dict.fromkeys((*apis, *keys, *self.makes, *self.grants)))

    @property
    def others(self) -> tuple[Make | Grant, ...]:
        """What another account has to do."""
        return tuple(item for item in self.all if item not in self.caller_may)


def remedy(report: Report) -> Remedy:
    """Every mend that the checks name. What a grant's resource or member needs to exist is made first."""
    found = report.evidence
    mends = [check.mend for check in report.checks if not check.met]
    grants = report.grants
    makes = [mend for mend in mends if isinstance(mend, Make)]
    makes += [Make(item, region=report.target.region) for item in _absent(report.target, found, grants)]
    makes = list(dict.fromkeys(makes))
    makes.sort(key=lambda item: 0 if item.apis else 1)
    every: tuple[Make | Grant, ...] = (*makes, *grants)
    may = frozenset(item for item in every if _caller_may(found, report.target, item))
    return Remedy(tuple(makes), grants, may)


def _absent(target: Target, found: Evidence, grants: tuple[Grant, ...]) -> list[Resource]:
    wanted = {item.resource for item in grants} | {
        target.resource(Kind.ACCOUNT, item.member.partition(":")[2])
        for item in grants
        if item.member.startswith("service")
    }
    return [item for item in access.made_resources(target) if item in wanted and found.exists(item) is False]


def _caller_may(found: Evidence, target: Target, item: Make | Grant) -> bool:
    project = target.resource(Kind.PROJECT)
    if isinstance(item, Make):
        permission = MAKING["apis"] if item.apis else MAKING[item.resource.kind]
        # Where Resource Manager itself is off, there is no telling; trying is the only way to find out, and harmless.
        return found.caller_may(permission, project) is not False
    return item.member != access.NOBODY and bool(found.caller_may(GRANTING[item.resource.kind], item.resource))


# Commands for people: the same remedy, its undoing, and where it goes.


def command(item: Make | Grant, target: Target) -> str:
    """The gcloud command that does it."""
    if isinstance(item, Grant):
        return _policy_command("add", item)
    project = f"--project={target.project}"
    labels = ",".join(f"{key}={value}" for key, value in LABELS.items())
    if item.apis:
        return shlex.join(["gcloud", "services", "enable", *item.apis, project])
    if item.resource.kind is Kind.ACCOUNT:
        return shlex.join(
            ["gcloud", "iam", "service-accounts", "create", item.resource.name.partition("@")[0], project]
        )
    if item.resource.kind is Kind.REPOSITORY:
        words = ["gcloud", "artifacts", "repositories", "create", target.repository, "--repository-format=docker"]
        key = [] if target.encryption_key is None else [f"--kms-key={target.encryption_key}"]
        return shlex.join([*words, f"--location={target.region}", f"--labels={labels}", *key, project])
    if item.resource.kind is Kind.SECRET:
        name = item.resource.name.rsplit("/", 1)[1]
        words = ["gcloud", "secrets", "create", name, "--replication-policy=automatic", f"--labels={labels}", project]
        # A key that is never shown; head and base64 are on every machine that has gcloud.
        return f"head -c 32 /dev/urandom | base64 | tr '+/' '-_' | {shlex.join([*words, '--data-file=-'])}"
    words = ["gcloud", "storage", "buckets", "create", f"gs://{item.resource.name}", f"--location={target.region}"]
    key = [] if target.encryption_key is None else [f"--default-encryption-key={target.encryption_key}"]
    return shlex.join([*words, "--uniform-bucket-level-access", "--public-access-prevention", *key, project])


def undo(item: Grant) -> str:
    """The gcloud command that takes a grant back."""
    return _policy_command("remove", item)


def _policy_command(verb: str, item: Grant) -> str:
    name, project = item.resource.name, f"--project={item.resource.project}"
    short, parts = name.rsplit("/", 1)[-1], name.split("/")
    within = dict(zip(parts[::2], parts[1::2], strict=False))
    location, region = f"--location={within.get('locations', '')}", f"--region={within.get('regions', '')}"
    of_run = f"--region={within.get('locations', '')}"
    binding = f"{verb}-iam-policy-binding"
    place, where = {
        Kind.PROJECT: (["projects", binding, name], ["--condition=None"]),
        Kind.BUCKET: (["storage", "buckets", binding, f"gs://{name}"], []),
        Kind.REPOSITORY: (["artifacts", "repositories", binding, short], [location, project]),
        Kind.ACCOUNT: (["iam", "service-accounts", binding, name], [project]),
        Kind.SERVICE: (["run", "services", binding, short], [of_run, project]),
        Kind.SECRET: (["secrets", binding, short], [project]),
        Kind.KEY: (["kms", "keys", binding, short], [f"--keyring={within.get('keyRings', '')}", location, project]),
        Kind.SUBNET: (["compute", "networks", "subnets", binding, short], [region, project]),
    }[item.resource.kind]
    return shlex.join(["gcloud", *place, f"--member={item.member}", f"--role={item.role}", *where])


def script(items: tuple[Make | Grant, ...], target: Target) -> str:
    """A shell script for the person who may; running it twice does no harm."""
    lines = [
        "#!/bin/sh",
        f"# What `coldstream deploy` of {target.service} needs in project {target.project}.",
        "set -eu",
        "",
    ]
    for item in items:
        # `create` fails where the thing is there already; a grant that is there already is not an error.
        optional = " || true" if isinstance(item, Make) and not item.apis else ""
        lines.append(f"{command(item, target)}{optional}")
    return "\n".join(lines) + "\n"


def undo_script(items: tuple[Grant, ...], target: Target) -> str:
    """A shell script that takes back what `apply` granted."""
    lines = [
        "#!/bin/sh",
        f"# Takes back what `coldstream doctor --fix` granted in project {target.project}.",
        "set -eu",
        "",
    ]
    return "\n".join([*lines, *(undo(item) for item in items)]) + "\n"


# Doing it.


def make_all(google: Google, target: Target, wanted: tuple[Make, ...], *, clock: Clock, tell: Tell) -> None:
    """Make what there is to make, in order."""
    for item in wanted:
        ground.make(google, target, item, clock=clock, tell=tell)


def grant_all(google: Google, grants: tuple[Grant, ...], *, clock: Clock, tell: Tell) -> tuple[Grant, ...]:
    """Add what is not there; what was added, so that it can be undone."""
    added = []
    for item in grants:
        if item.role in FORBIDDEN or not access.grantable(item.role, item.resource.kind):
            raise DeployError(f"{item} is never granted; this is a bug in coldstream.deploy.access")
        if add(google, item, clock=clock, tell=tell):
            tell(f"granted {item}")
            added.append(item)
    return tuple(added)


def add(google: Google, item: Grant, *, clock: Clock, tell: Tell) -> bool:
    """Add one grant under the policy's etag; whether it was missing.

    Accounts and resources that were made a moment ago are not known everywhere yet: they are waited for.

    Raises:
        DeployError: others keep changing the policy, or Google refused.
    """
    # A write that Google did not answer may have been made: it counts as ours when it is found there.
    sent = False

    def once() -> bool:
        nonlocal sent
        policy = google.policy(item.resource)
        plain = [binding for binding in policy["bindings"] if "condition" not in binding]
        if any(binding["role"] == item.role and item.member in binding["members"] for binding in plain):
            return sent
        policy["bindings"].append({"role": item.role, "members": [item.member]})
        sent = True
        google.set_policy(item.resource, policy)
        return True

    for attempt in range(ATTEMPTS):
        try:
            return ground.patiently(str(item), once, clock=clock, tell=tell)
        except (ResourceConflict, CloudUnavailable):
            clock.sleep(1.0 + attempt)
    raise DeployError(f"{item}: others keep changing the policy of {item.resource}; run this again")


def remove(google: Google, resource: Resource, member: str, *, clock: Clock) -> bool:
    """Take every role of a member from a resource's own policy; whether it had one.

    Raises:
        DeployError: others keep changing the policy, or Google refused.
    """
    for attempt in range(ATTEMPTS):
        policy = google.policy(resource)
        kept = [{**item, "members": [one for one in item["members"] if one != member]} for item in policy["bindings"]]
        if kept == policy["bindings"]:
            return False
        try:
            google.set_policy(resource, {**policy, "bindings": [item for item in kept if item["members"]]})
            return True
        except ResourceConflict:
            clock.sleep(1.0 + attempt)
    raise DeployError(f"{member}: others keep changing the policy of {resource}; run this again")


def wait_until_met(examine: Callable[[], Report], wanted: frozenset[Grant], *, clock: Clock, tell: Tell) -> Report:
    """Ask again until the granted checks are met, or patience ends; the last report. Grants nothing."""
    begun, pause = clock.now(), 5.0
    while True:
        report = examine()
        open_ = [check for check in report.checks if not check.met and check.mend in wanted]
        waited = clock.now() - begun
        if not open_ or waited >= PATIENCE:
            return report
        tell(f"{len(open_)} of {len(wanted)} grants do not act yet, after {waited:.0f} s; IAM may take seven minutes")
        clock.sleep(min(pause, max(1.0, PATIENCE - waited)))
        pause = min(30.0, pause * 1.5)


@dataclass(frozen=True, slots=True)
class Fixed:
    """What came of a fix."""

    report: Report
    added: tuple[Grant, ...]
    others: tuple[Make | Grant, ...]


def apply(google: Google, examine: Callable[[], Report], report: Report, *, clock: Clock, tell: Tell) -> Fixed:
    """Make, ask again, grant, and wait until the grants act. What the caller may not do is left in `others`."""
    target = report.target
    unlocked: tuple[Grant, ...] = ()
    if target.key is not None:
        report, unlocked = _unlock(google, examine, report, clock=clock, tell=tell)
    locked = _locked(report)
    for item in locked:
        tell(f"{item} is left until the service agents may use the key that it is encrypted with")
    ready = remedy(report)
    made = tuple(item for item in ready.makes if item in ready.caller_may and item.resource not in locked)
    make_all(google, target, made, clock=clock, tell=tell)
    # What was made, or turned on, can be asked about only now.
    again = remedy(examine())
    granted = tuple(item for item in again.grants if item in again.caller_may and item.resource not in locked)
    added = grant_all(google, granted, clock=clock, tell=tell)
    last = wait_until_met(examine, frozenset(granted), clock=clock, tell=tell) if granted else examine()
    return Fixed(last, (*unlocked, *added), again.others)


def _unlock(
    google: Google, examine: Callable[[], Report], report: Report, *, clock: Clock, tell: Tell
) -> tuple[Report, tuple[Grant, ...]]:
    """Let the service agents, which come with their APIs, use the customer's key; what was granted, once it acts."""
    wanted = remedy(report)
    apis = tuple(item for item in wanted.makes if item.apis and item in wanted.caller_may)
    make_all(google, report.target, apis, clock=clock, tell=tell)
    again = remedy(examine())
    keys = tuple(item for item in again.grants if item.resource.kind is Kind.KEY and item in again.caller_may)
    added = grant_all(google, keys, clock=clock, tell=tell)
    return (wait_until_met(examine, frozenset(keys), clock=clock, tell=tell) if keys else examine()), added


def _locked(report: Report) -> tuple[Resource, ...]:
    """What cannot be made, because it is encrypted with a key that is not there, or that an agent may not use."""
    if not any(check.step == "encryption" and check.answer == "no" for check in report.checks):
        return ()
    target = report.target
    return (target.resource(Kind.REPOSITORY), target.resource(Kind.BUCKET, target.source_bucket))
