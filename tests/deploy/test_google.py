"""The seam to Google: foreign errors mapped once, etags honoured."""

from __future__ import annotations

import pytest
import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.oauth2.credentials import Credentials

from coldstream.deploy.google import Endpoints, Google, Pending, mapped, wait
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
