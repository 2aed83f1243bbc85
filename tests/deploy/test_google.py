"""The seam to Google: foreign errors mapped once, etags honoured."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.oauth2.credentials import Credentials

from coldstream.deploy import fix
from coldstream.deploy.access import Grant
from coldstream.deploy.google import Endpoints, Google, Pending, mapped, wait
from coldstream.deploy.google.mapping import PAUSES, asked, called
from coldstream.deploy.google.operations import pending
from coldstream.deploy.target import Kind
from coldstream.errors import (
    AccessBarred,
    ApiDisabled,
    CloudUnavailable,
    ColdstreamError,
    DeployError,
    PermissionRefused,
    ResourceConflict,
    ResourceExists,
    ResourceNotFound,
)
from tests.deploy.conftest import Site
from tests.fakecloud import SimClock


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (api.NotFound("no"), ResourceNotFound),
        (api.AlreadyExists("there"), ResourceExists),
        (api.Aborted("meanwhile"), ResourceConflict),
        (api.Conflict("There were concurrent policy changes"), ResourceConflict),
        (api.PreconditionFailed("generation"), ResourceExists),
        (api.Forbidden("Permission denied"), PermissionRefused),
        (api.Forbidden("Cloud Run Admin API has not been used in project 1 before"), ApiDisabled),
        (api.Unauthorized("who?"), PermissionRefused),
        (api.BadRequest("field"), DeployError),
        (api.ServiceUnavailable("later"), CloudUnavailable),
        (api.TooManyRequests("slower"), CloudUnavailable),
        (api.MethodNotImplemented("never"), DeployError),
        (api.Forbidden("vpcServiceControlsUniqueIdentifier: abc"), AccessBarred),
        (api.Forbidden("This API method requires billing to be enabled"), AccessBarred),
        (api.Forbidden("Caller does not have required permission to use project demo-project."), AccessBarred),
        (api.BadRequest("Bucket is a requester pays bucket but no user project provided."), AccessBarred),
        (auth.RefreshError("expired"), PermissionRefused),
        (auth.TransportError("no route"), CloudUnavailable),
        (requests.ConnectionError("refused"), CloudUnavailable),
        (requests.Timeout("slow"), CloudUnavailable),
        (requests.TooManyRedirects("round"), DeployError),
    ],
)
def test_every_foreign_error_becomes_one_of_ours(foreign: Exception, ours: type[ColdstreamError]) -> None:
    with pytest.raises(DeployError) as caught, mapped():
        raise foreign
    assert type(caught.value) is ours
    assert caught.value.__cause__ is foreign


def test_an_operation_that_does_not_end_is_given_up_with_its_name() -> None:
    clock, heard = SimClock(), list[float]()
    with pytest.raises(DeployError, match="the thing has not ended after 10 s"):
        wait(Pending("the thing", lambda: False), clock=clock, limit=10.0, tick=heard.append)
    assert heard == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_a_grant_leaves_the_bindings_beside_it_as_they_are(owned: Site) -> None:
    """Read, added, written: both are there."""
    google, target = owned.google(), owned.job().target
    resource = target.resource(Kind.PROJECT)
    policy = google.policy(resource)
    assert {item["role"] for item in policy["bindings"]} == {"roles/owner"}
    policy["bindings"].append({"role": "roles/browser", "members": ["user:x@example.com"]})
    google.set_policy(resource, policy)
    assert {item["role"] for item in google.policy(resource)["bindings"]} == {"roles/owner", "roles/browser"}


def test_a_stale_etag_is_a_conflict_on_every_kind_of_resource(ready: Site) -> None:
    """REST, gRPC and Cloud Storage say it in three ways."""
    google, target = ready.google(), ready.job().target
    ready.deploy()
    for kind, name in (
        (Kind.PROJECT, None),
        (Kind.REPOSITORY, None),
        (Kind.SERVICE, None),
        (Kind.ACCOUNT, target.build_account),
        (Kind.BUCKET, target.source_bucket),
    ):
        resource = target.resource(kind, name)
        policy = google.policy(resource)
        ready.world.iam.grant(resource.full_name, "roles/browser", "user:other@example.com")
        with pytest.raises(ResourceConflict):
            google.set_policy(resource, policy)


def test_a_caller_without_a_valid_token_is_refused(site: Site) -> None:
    endpoints = Endpoints(site.cloud.url, site.cloud.grpc_target)
    with pytest.raises(PermissionRefused, match="credentials"):
        Google(Credentials(token="stolen"), endpoints=endpoints).caller()


def test_a_poll_that_google_does_not_answer_says_nothing_of_the_operation() -> None:
    answers = iter([CloudUnavailable("503"), False, CloudUnavailable("429"), True])

    def poll() -> bool:
        answer = next(answers)
        if isinstance(answer, CloudUnavailable):
            raise answer
        return answer

    wait(Pending("the thing", poll), clock=SimClock(), limit=60.0, tick=lambda _: None)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_read_is_asked_again_on_our_clock_and_given_up_in_the_end(status: int) -> None:
    google = Google(Credentials(token="x"), clock=(clock := SimClock()))
    error = api.from_http_status(status, "later")
    tries = []

    class Reader(Google):
        @asked
        def look(self) -> str:
            tries.append(1)
            if len(tries) < 3:
                raise error
            return "seen"

        @asked
        def never(self) -> str:
            tries.append(1)
            raise error

        @called
        def write(self) -> None:
            tries.append(1)
            raise error

    reader = Reader(google._credentials, clock=clock)
    assert reader.look() == "seen"
    assert clock.now() == sum(PAUSES[:2])
    tries.clear()
    with pytest.raises(CloudUnavailable):
        reader.never()
    assert len(tries) == len(PAUSES) + 1
    tries.clear()
    with pytest.raises(CloudUnavailable):
        reader.write()
    assert len(tries) == (len(PAUSES) + 1 if status == 429 else 1)


def test_an_operation_that_ended_as_unavailable_has_ended() -> None:
    """Its outcome is not a poll that failed."""

    class Ended:
        def done(self, retry: object) -> bool:
            return True

        def result(self, timeout: float) -> None:
            raise api.ServiceUnavailable("no capacity")

    with pytest.raises(DeployError, match="no capacity"):
        wait(pending("the thing", Ended()), clock=SimClock(), limit=60.0, tick=lambda _: None)


def test_a_write_that_was_not_answered_but_made_is_taken_back_by_the_undo(owned: Site) -> None:
    """503 after the policy was written: found there, it counts as ours."""
    world, target = owned.world, owned.job().target
    google = owned.google()
    item = Grant("roles/browser", "user:x@example.com", target.resource(Kind.PROJECT))

    class Deaf(Google):
        def set_policy(self, resource: Any, policy: Any) -> None:
            google.set_policy(resource, policy)
            raise CloudUnavailable("503")

        def policy(self, resource: Any) -> dict[str, Any]:
            return google.policy(resource)

    deaf = Deaf(Credentials(token="x"))
    assert fix.add(deaf, item, clock=world.clock, tell=lambda _: None) is True
    assert fix.add(google, item, clock=world.clock, tell=lambda _: None) is False


def test_a_role_that_its_resource_does_not_take_is_never_granted(owned: Site) -> None:
    bucket = owned.job().target.resource(Kind.BUCKET, "models")
    grants = (Grant("roles/browser", "user:x@example.com", bucket),)
    with pytest.raises(DeployError, match="is never granted"):
        fix.grant_all(owned.google(), grants, clock=owned.world.clock, tell=lambda _: None)
