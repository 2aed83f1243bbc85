"""What a deployment stands on: APIs, accounts, repository, bucket, secret. What is not there is made.

Whether something is there is asked with `get`. What was made a moment ago is not known everywhere yet: an account is
waited for until it is seen, and what uses it is asked again while Google says that it does not exist.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from coldstream.deploy.access import Make, apis, helpers
from coldstream.deploy.clock import Clock
from coldstream.deploy.evidence import ask
from coldstream.deploy.google import Google, wait
from coldstream.deploy.target import LABELS, Kind, Target
from coldstream.errors import DeployError, PermissionRefused, ResourceExists, ResourceNotFound

Tell = Callable[[str], None]
_T = TypeVar("_T")

# https://cloud.google.com/iam/docs/access-change-propagation: new accounts take seconds, at times a minute or more.
PATIENCE = 300.0
SOURCE_DAYS = 30
KEPT_IMAGES = 10
_LATE = (
    "does not exist",
    "Unknown service account",
    "may take a few minutes",
    "might take a few minutes",
    "has not been used in project",
)


def patiently(what: str, action: Callable[[], _T], *, clock: Clock, tell: Tell) -> _T:
    """Do what rests on something new, again and again while Google says that it does not know it yet.

    Raises:
        DeployError: Google's own, when it is another one, or still the same after `PATIENCE` seconds.
    """
    begun, pause = clock.now(), 5.0
    while True:
        try:
            return action()
        except DeployError as exc:
            waited = clock.now() - begun
            if waited >= PATIENCE or not any(words in str(exc) for words in _LATE):
                raise
            tell(f"{what}: not known everywhere yet, after {waited:.0f} s")
            clock.sleep(pause)
            pause = min(30.0, pause * 1.5)


def ensure_apis(google: Google, target: Target, *, clock: Clock, tell: Tell) -> tuple[str, ...]:
    """Turn on what is off; the names of those. Without what only checks read with, a deployment works."""
    every = apis(target)
    state = google.enabled_apis(target.project, every)
    off = tuple(api for api in every if not state.get(api, False))
    if not off:
        return ()
    try:
        turn_on(google, target, off, clock=clock, tell=tell)
    except PermissionRefused as exc:
        if not set(off) <= set(helpers(target)):
            raise
        tell(f"they stay off: {exc}")
        return ()
    return off


def turn_on(google: Google, target: Target, apis: Iterable[str], *, clock: Clock, tell: Tell) -> None:
    """Turn APIs on and wait for it."""
    names = tuple(apis)
    tell(f"turning on {', '.join(name.removesuffix('.googleapis.com') for name in names)}")
    pending = google.enable_apis(target.project, names)
    wait(pending, clock=clock, limit=600, tick=lambda waited: tell(f"turning on the APIs: {waited:.0f} s"))


def ensure_account(google: Google, target: Target, email: str, *, clock: Clock, tell: Tell) -> bool:
    """Make one of our own accounts; whether it was made. Who may act as it need not be allowed to look at it."""
    there = _account_is_there(google, target, email)
    if there:
        return False
    try:
        google.create_account(target.project, email, f"made by coldstream for the service {target.service}")
    except ResourceExists:
        return False
    except PermissionRefused:
        # The caller may neither see it nor make it; whether it is there is told by the step that needs it.
        if there is None:
            return False
        raise
    tell(f"made account {email}")
    await_account(google, target, email, clock=clock, tell=tell)
    return True


def _account_is_there(google: Google, target: Target, email: str) -> bool | None:
    try:
        return google.account_exists(target.project, email)
    except PermissionRefused:
        # Hidden, or not there: only who may use it can tell.
        uses = ["iam.serviceAccounts.actAs", "iam.serviceAccounts.getOpenIdToken"]
        held = ask("testIamPermissions", lambda: google.test_permissions(target.resource(Kind.ACCOUNT, email), uses))
        return True if held.value else None


def await_account(google: Google, target: Target, email: str, *, clock: Clock, tell: Tell) -> None:
    """Wait until a new account is seen. A caller that may not look at it goes on."""
    begun = clock.now()
    try:
        while not google.account_exists(target.project, email) and clock.now() - begun < PATIENCE:
            tell(f"account {email} is not seen yet, after {clock.now() - begun:.0f} s")
            clock.sleep(5.0)
    except PermissionRefused:
        return


def ensure_repository(google: Google, target: Target, *, clock: Clock, tell: Tell) -> bool:
    """Make the repository; whether it was made. It keeps the newest images, and removes the rest after a month."""
    try:
        google.repository(target.repository_name)
        return False
    except ResourceNotFound:
        pass
    try:
        pending = google.create_repository(
            target.repository_name, LABELS, cleanup_policies(), key=target.encryption_key
        )
    except ResourceExists:
        return False
    wait(pending, clock=clock, limit=300, tick=lambda waited: tell(f"making the repository: {waited:.0f} s"))
    tell(f"made repository {target.repository}")
    return True


def cleanup_policies() -> dict[str, Any]:
    """What Artifact Registry keeps and removes (https://cloud.google.com/artifact-registry/docs/repositories/cleanup-policy)."""
    newest = {"id": "keep-the-newest", "action": "KEEP", "most_recent_versions": {"keep_count": KEPT_IMAGES}}
    old = {
        "id": "remove-old",
        "action": "DELETE",
        "condition": {"tag_state": "ANY", "older_than": {"seconds": 30 * 24 * 3600}},
    }
    return {"keep-the-newest": newest, "remove-old": old}


def ensure_bucket(google: Google, target: Target, *, tell: Tell) -> bool:
    """Make the source bucket; whether it was made.

    Raises:
        DeployError: the bucket belongs to another project, or its owner cannot be seen.
    """
    try:
        owner = google.bucket(target.source_bucket)["project_number"]
    except ResourceNotFound:
        return _make_bucket(google, target, tell=tell)
    except PermissionRefused as exc:
        raise DeployError(
            f"bucket {target.source_bucket} may be somebody else's, and its owner cannot be seen: {exc}; grant the "
            'caller roles/storage.bucketViewer on it, or name another with source_bucket = "..." under [deploy]'
        ) from exc
    if owner != google.project(target.project)["number"]:
        raise DeployError(
            f"bucket {target.source_bucket} belongs to project {owner}, whose people could exchange what is built from "
            'it; name another with source_bucket = "..." under [deploy]'
        )
    return False


def _make_bucket(google: Google, target: Target, *, tell: Tell) -> bool:
    try:
        google.create_bucket(
            target.project, target.source_bucket, target.region, LABELS, days=SOURCE_DAYS, key=target.encryption_key
        )
    except ResourceExists:
        # Made between our look and our own making, by an owner that is looked at in turn.
        return ensure_bucket(google, target, tell=tell)
    tell(f"made bucket {target.source_bucket}")
    return True


def ensure_secret(google: Google, name: str, *, tell: Tell) -> bool:
    """Make the secret with a key of 32 random bytes in it; whether it was made. The key is never shown."""
    try:
        google.secret(name)
        return False
    except ResourceNotFound:
        pass
    try:
        google.create_secret(name, LABELS)
    except ResourceExists:
        return False
    google.add_secret_version(name, secrets.token_urlsafe(32).encode())
    short = name.rsplit("/", 1)[1]
    tell(f"made secret {short} with a key; `gcloud secrets versions access latest --secret={short}` shows it")
    return True


def make(google: Google, target: Target, item: Make, *, clock: Clock, tell: Tell) -> bool:
    """Whatever a check said has to be made; whether it was made now."""
    if item.apis:
        turn_on(google, target, item.apis, clock=clock, tell=tell)
        return True
    if item.resource.kind is Kind.ACCOUNT:
        return ensure_account(google, target, item.resource.name, clock=clock, tell=tell)
    if item.resource.kind is Kind.REPOSITORY:
        return ensure_repository(google, target, clock=clock, tell=tell)
    if item.resource.kind is Kind.SECRET:
        return ensure_secret(google, item.resource.name, tell=tell)
    return ensure_bucket(google, target, tell=tell)
