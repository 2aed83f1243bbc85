"""What a deployment stands on: APIs, accounts, repository, bucket. What is not there is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from coldstream.deploy.access import APIS, Make
from coldstream.deploy.clock import Clock
from coldstream.deploy.google import Google, wait
from coldstream.deploy.target import LABELS, Kind, Target
from coldstream.errors import ResourceExists, ResourceNotFound

Tell = Callable[[str], None]


def ensure_apis(google: Google, target: Target, *, clock: Clock, tell: Tell) -> tuple[str, ...]:
    """Turn on what is off; the names of those."""
    state = google.enabled_apis(target.project, APIS)
    off = tuple(api for api in APIS if not state.get(api, False))
    if off:
        turn_on(google, target, off, clock=clock, tell=tell)
    return off


def turn_on(google: Google, target: Target, apis: Iterable[str], *, clock: Clock, tell: Tell) -> None:
    """Turn APIs on and wait for it."""
    names = tuple(apis)
    tell(f"turning on {', '.join(name.removesuffix('.googleapis.com') for name in names)}")
    pending = google.enable_apis(target.project, names)
    wait(pending, clock=clock, limit=600, tick=lambda waited: tell(f"turning on the APIs: {waited:.0f} s"))


def ensure_account(google: Google, target: Target, email: str, *, tell: Tell) -> bool:
    """Make one of our own accounts; whether it was made. Who may act as it need not be allowed to look at it."""
    try:
        google.test_permissions(target.resource(Kind.ACCOUNT, email), ["iam.serviceAccounts.actAs"])
        return False
    except ResourceNotFound:
        pass
    try:
        google.create_account(target.project, email, f"made by coldstream for the service {target.service}")
    except ResourceExists:
        return False
    tell(f"made account {email}")
    return True


def ensure_repository(google: Google, target: Target, *, clock: Clock, tell: Tell) -> bool:
    """Make the repository; whether it was made."""
    try:
        google.repository(target.repository_name)
        return False
    except ResourceNotFound:
        pass
    try:
        pending = google.create_repository(target.repository_name, LABELS)
    except ResourceExists:
        return False
    wait(pending, clock=clock, limit=300, tick=lambda waited: tell(f"making the repository: {waited:.0f} s"))
    tell(f"made repository {target.repository}")
    return True


def ensure_bucket(google: Google, target: Target, *, tell: Tell) -> bool:
    """Make the source bucket; whether it was made. Who may write to it need not be allowed to look at it."""
    resource = target.resource(Kind.BUCKET, target.source_bucket)
    try:
        google.test_permissions(resource, ["storage.objects.create"])
        return False
    except ResourceNotFound:
        pass
    try:
        google.create_bucket(target.project, target.source_bucket, target.region, LABELS)
    except ResourceExists:
        return False
    tell(f"made bucket {target.source_bucket}")
    return True


def make(google: Google, target: Target, item: Make, *, clock: Clock, tell: Tell) -> bool:
    """Whatever a check said has to be made; whether it was made now."""
    if item.apis:
        turn_on(google, target, item.apis, clock=clock, tell=tell)
        return True
    if item.resource.kind is Kind.ACCOUNT:
        return ensure_account(google, target, item.resource.name, tell=tell)
    if item.resource.kind is Kind.REPOSITORY:
        return ensure_repository(google, target, clock=clock, tell=tell)
    return ensure_bucket(google, target, tell=tell)
