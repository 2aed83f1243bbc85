"""The seam to Google Cloud: every call to a Google client goes through here, and nothing else knows their types.

Clients are made on first use and spoken to over REST; IAM admin exists over gRPC only. What comes back is plain data
(dicts spelled as the protos spell them), and Google's errors are mapped once, by `mapped`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from coldstream.deploy.clock import Clock
from coldstream.deploy.target import Kind, Resource
from coldstream.errors import (
    ApiDisabled,
    DeployError,
    MissingExtra,
    PermissionRefused,
    ResourceConflict,
    ResourceExists,
    ResourceNotFound,
)

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

SCOPES = ("https://www.googleapis.com/auth/cloud-platform", "https://www.googleapis.com/auth/userinfo.email")
TIMEOUT = 60.0

Access = Literal["yes", "no", "unknown"]
_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where Google answers. Empty means Google itself; a test names its fake."""

    rest: str = ""
    grpc: str = ""

    def of(self, host: str) -> str:
        """The endpoint of one API."""
        return f"{self.rest}/{host}" if self.rest else f"https://{host}"


def default_credentials() -> Credentials:
    """Application default credentials.

    Raises:
        PermissionRefused: there are none.
        MissingExtra: Google's clients are not installed.
    """
    import google.auth
    import google.auth.exceptions

    try:
        credentials, _ = google.auth.default(scopes=list(SCOPES))
    except google.auth.exceptions.DefaultCredentialsError as exc:
        raise PermissionRefused(
            "no application default credentials; run `gcloud auth application-default login`, or set "
            "GOOGLE_APPLICATION_CREDENTIALS to a key file"
        ) from exc
    return credentials


@contextmanager
def mapped() -> Iterator[None]:
    """Google's exceptions as ours."""
    requests = _module("requests")
    api, auth = _module("google.api_core.exceptions"), _module("google.auth.exceptions")
    try:
        yield
    except api.NotFound as exc:
        raise ResourceNotFound(_said(exc)) from exc
    except api.Aborted as exc:
        raise ResourceConflict(_said(exc)) from exc
    except api.Conflict as exc:
        aborted = "ABORTED" in str(exc) or "concurrent" in str(exc) or "Conflict for resource" in str(exc)
        raise (ResourceConflict if aborted else ResourceExists)(_said(exc)) from exc
    except api.PreconditionFailed as exc:
        raise ResourceExists(_said(exc)) from exc
    except (api.Forbidden, api.Unauthorized) as exc:
        raise (ApiDisabled if _is_disabled(exc) else PermissionRefused)(_said(exc)) from exc
    except api.GoogleAPICallError as exc:
        raise DeployError(f"Google Cloud answered: {_said(exc)}") from exc
    except auth.GoogleAuthError as exc:
        raise PermissionRefused(f"the credentials could not be used: {exc}") from exc
    except requests.RequestException as exc:
        raise DeployError(f"Google Cloud could not be reached: {exc}") from exc


def _said(exc: Exception) -> str:
    return re.sub(r"^(GET|POST|PUT|PATCH|DELETE) \S+: ", "", str(getattr(exc, "message", "") or exc))


def _is_disabled(exc: Exception) -> bool:
    return getattr(exc, "reason", None) == "SERVICE_DISABLED" or "has not been used in project" in str(exc)


def _call(function: Callable[_P, _R]) -> Callable[_P, _R]:
    @wraps(function)
    def inner(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with mapped():
            return function(*args, **kwargs)

    return inner


@dataclass(frozen=True, slots=True)
class Pending:
    """A long-running operation. `poll` asks once: whether it has ended; it raises what went wrong."""

    what: str
    poll: Callable[[], bool]


def wait(pending: Pending, *, clock: Clock, limit: float, every: float = 2.0, tick: Callable[[float], None]) -> None:
    """Ask until the operation has ended; `tick` hears the seconds waited so far.

    Raises:
        DeployError: it failed, or has not ended after `limit` seconds.
    """
    begun = clock.now()
    while not pending.poll():
        waited = clock.now() - begun
        if waited >= limit:
            raise DeployError(f"{pending.what} has not ended after {limit:.0f} s; look at it, then run this again")
        tick(waited)
        clock.sleep(every)


class Google:
    """One caller on Google Cloud; safe to use from several threads."""

    def __init__(self, credentials: Credentials, *, endpoints: Endpoints = Endpoints()) -> None:
        self._credentials = credentials
        self._endpoints = endpoints
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()

    # APIs, the project, the caller

    @_call
    def caller(self) -> str:
        """The caller's IAM member (`user:...` or `serviceAccount:...`)."""
        answer = self._session().get(f"{self._endpoints.of('www.googleapis.com')}/oauth2/v2/userinfo", timeout=TIMEOUT)
        if answer.status_code != 200:
            raise PermissionRefused(f"the credentials do not say whose they are (HTTP {answer.status_code})")
        email = str(answer.json()["email"])
        return f"serviceAccount:{email}" if email.endswith(".gserviceaccount.com") else f"user:{email}"

    @_call
    def enabled_apis(self, project: str, apis: Sequence[str]) -> Mapping[str, bool]:
        """Which APIs are on, in one batch (at most 30)."""
        names = [f"projects/{project}/services/{api}" for api in apis]
        answer = self._usage().batch_get_services({"parent": f"projects/{project}", "names": names}, timeout=TIMEOUT)
        return {item.name.rsplit("/", 1)[1]: item.state.name == "ENABLED" for item in answer.services}

    @_call
    def enable_apis(self, project: str, apis: Sequence[str]) -> Pending:
        """Turn APIs on, in one batch (at most 20)."""
        request = {"parent": f"projects/{project}", "service_ids": list(apis)}
        return _pending("turning on the APIs", self._usage().batch_enable_services(request, timeout=TIMEOUT))

    @_call
    def project_parent(self, project: str) -> str:
        """The folder or organisation that the project belongs to; empty for none."""
        return str(self._projects().get_project(name=f"projects/{project}", timeout=TIMEOUT).parent)

    @_call
    def billing_enabled(self, project: str) -> bool:
        """Whether a billing account pays for the project."""
        info = self._billing().get_project_billing_info(name=f"projects/{project}", timeout=TIMEOUT)
        return bool(info.billing_enabled)

    @_call
    def organisation_policy(self, project: str, constraint: str) -> Mapping[str, Any]:
        """What is in force for the project after inheritance: `{"rules": [...]}`."""
        name = f"projects/{project}/policies/{constraint}"
        policy = _plain(self._org_policy().get_effective_policy(name=name, timeout=TIMEOUT))
        return dict(policy.get("spec", {}))

    @_call
    def quota(self, project: str, region: str, quota_id: str) -> int | None:
        """The limit in a region, in milli-vCPU, bytes or GPUs; None where the answer does not name the region."""
        place = f"projects/{project}/locations/global/services/run.googleapis.com/quotaInfos/{quota_id}"
        for info in self._quotas().get_quota_info(name=place, timeout=TIMEOUT).dimensions_infos:
            if info.dimensions.get("region") == region or region in info.applicable_locations:
                return int(info.details.value)
        return None

    # IAM

    @_call
    def test_permissions(self, resource: Resource, permissions: Sequence[str]) -> frozenset[str]:
        """Those of the permissions that the caller holds on the resource."""
        if resource.kind is Kind.BUCKET:
            return frozenset(self._bucket(resource.name).test_iam_permissions(list(permissions), timeout=TIMEOUT))
        request = {"resource": self._iam_name(resource), "permissions": list(permissions)}
        return frozenset(self._iam_client(resource).test_iam_permissions(request, timeout=TIMEOUT).permissions)

    @_call
    def policy(self, resource: Resource) -> dict[str, Any]:
        """`{"bindings": [{"role", "members", "condition"?}], "etag"}`."""
        if resource.kind is Kind.BUCKET:
            policy = self._bucket(resource.name).get_iam_policy(requested_policy_version=3, timeout=TIMEOUT)
            bindings = [{**item, "members": sorted(item["members"])} for item in policy.bindings]
            return {"bindings": bindings, "etag": policy.etag}
        request = {"resource": self._iam_name(resource), "options": {"requested_policy_version": 3}}
        return _plain_policy(self._iam_client(resource).get_iam_policy(request, timeout=TIMEOUT))

    @_call
    def set_policy(self, resource: Resource, policy: Mapping[str, Any]) -> None:
        """Write a policy that `policy` read; its etag guards against others.

        Raises:
            ResourceConflict: the policy changed in between.
        """
        if resource.kind is Kind.BUCKET:
            bucket = self._bucket(resource.name)
            wanted = bucket.get_iam_policy(requested_policy_version=3, timeout=TIMEOUT)
            if wanted.etag != policy["etag"]:
                raise ResourceConflict(f"the policy of {resource} changed meanwhile")
            wanted.bindings = [{**item, "members": set(item["members"])} for item in policy["bindings"]]
            bucket.set_iam_policy(wanted, timeout=TIMEOUT)
            return
        request = {"resource": self._iam_name(resource), "policy": _proto_policy(policy)}
        self._iam_client(resource).set_iam_policy(request, timeout=TIMEOUT)

    @_call
    def troubleshoot(self, email: str, permission: str, resource: Resource) -> Access:
        """Whether another principal holds a permission, folders, groups and deny policies included."""
        access = {"principal": email, "full_resource_name": resource.full_name, "permission": permission}
        answer = self._troubleshooter().troubleshoot_iam_policy({"access_tuple": access}, timeout=TIMEOUT)
        known: dict[str, Access] = {"GRANTED": "yes", "NOT_GRANTED": "no"}
        return known.get(answer.access.name, "unknown")

    @_call
    def role_permissions(self, role: str) -> frozenset[str]:
        """What a role contains."""
        return frozenset(self._iam().get_role({"name": role}, timeout=TIMEOUT).included_permissions)

    @_call
    def account_exists(self, project: str, email: str) -> bool:
        """Whether the service account is there.

        Raises:
            PermissionRefused: the caller may not see it.
        """
        try:
            with mapped():
                self._iam().get_service_account(name=f"projects/{project}/serviceAccounts/{email}", timeout=TIMEOUT)
        except ResourceNotFound:
            return False
        return True

    @_call
    def create_account(self, project: str, email: str, description: str) -> None:
        """Make a service account."""
        account_id = email.split("@", 1)[0]
        account = {"display_name": account_id, "description": description}
        request = {"name": f"projects/{project}", "account_id": account_id, "service_account": account}
        self._iam().create_service_account(request, timeout=TIMEOUT)

    @_call
    def delete_account(self, project: str, email: str) -> None:
        """Remove a service account."""
        self._iam().delete_service_account(name=f"projects/{project}/serviceAccounts/{email}", timeout=TIMEOUT)

    @_call
    def identity_token(self, email: str, audience: str) -> str:
        """An identity token of a service account, made by IAM Credentials; any kind of caller may ask for one."""
        request = {"name": f"projects/-/serviceAccounts/{email}", "audience": audience, "include_email": True}
        return str(self._tokens().generate_id_token(request, timeout=TIMEOUT).token)

    # Artifact Registry

    @_call
    def repository(self, name: str) -> Mapping[str, Any]:
        """The repository."""
        return _plain(self._registry().get_repository(name=name, timeout=TIMEOUT))

    @_call
    def create_repository(self, name: str, labels: Mapping[str, str]) -> Pending:
        """Make a Docker repository."""
        parent, _, short = name.partition("/repositories/")
        repository = {"format_": "DOCKER", "labels": dict(labels), "description": "images built by coldstream deploy"}
        request = {"parent": parent, "repository_id": short, "repository": repository}
        return _pending("making the repository", self._registry().create_repository(request, timeout=TIMEOUT))

    @_call
    def delete_repository(self, name: str) -> Pending:
        """Remove a repository with its images."""
        return _pending("removing the repository", self._registry().delete_repository(name=name, timeout=TIMEOUT))

    def image_digest(self, repository: str, tag: str) -> str | None:
        """The digest behind a tag of the image `coldstream`; None when there is none."""
        name = f"{repository}/packages/coldstream/tags/{tag}"
        try:
            with mapped():
                return str(self._registry().get_tag(request={"name": name}, timeout=TIMEOUT).version.rsplit("/", 1)[1])
        except ResourceNotFound:
            return None

    # Cloud Storage

    @_call
    def bucket(self, name: str) -> Mapping[str, Any]:
        """`{"location", "labels"}`; the location in capitals."""
        bucket = self._storage().get_bucket(name, timeout=TIMEOUT)
        return {"location": str(bucket.location), "labels": dict(bucket.labels)}

    @_call
    def create_bucket(self, project: str, name: str, region: str, labels: Mapping[str, str]) -> None:
        """Make a private bucket with uniform access."""
        bucket = self._bucket(name)
        bucket.labels = dict(labels)
        bucket.iam_configuration.uniform_bucket_level_access_enabled = True
        bucket.iam_configuration.public_access_prevention = "enforced"
        self._storage().create_bucket(bucket, project=project, location=region, timeout=TIMEOUT)

    @_call
    def delete_bucket(self, name: str) -> None:
        """Remove an empty bucket."""
        self._bucket(name).delete(timeout=TIMEOUT)

    @_call
    def objects(self, bucket: str, prefix: str = "") -> tuple[str, ...]:
        """The names below a prefix."""
        return tuple(item.name for item in self._storage().list_blobs(bucket, prefix=prefix, timeout=TIMEOUT))

    def object_exists(self, bucket: str, name: str) -> bool:
        """Whether the object is there."""
        try:
            with mapped():
                self._bucket(bucket).blob(name).reload(timeout=TIMEOUT)
        except ResourceNotFound:
            return False
        return True

    @_call
    def upload(self, bucket: str, name: str, data: bytes) -> None:
        """Write an object that is not there yet.

        Raises:
            ResourceExists: it is.
        """
        blob = self._bucket(bucket).blob(name)
        blob.upload_from_string(data, content_type="application/gzip", if_generation_match=0, timeout=TIMEOUT)

    @_call
    def delete_object(self, bucket: str, name: str) -> None:
        """Remove an object."""
        self._bucket(bucket).blob(name).delete(timeout=TIMEOUT)

    # Cloud Build

    @_call
    def create_build(self, location: str, build: Mapping[str, Any]) -> str:
        """Start a build; its id."""
        cloudbuild_v1 = _module("google.cloud.devtools.cloudbuild_v1")
        # With `project_id` the REST transport chooses the older path without a location, and another set of builds.
        request = {"parent": location, "build": cloudbuild_v1.Build(dict(build))}
        operation = self._build().create_build(cloudbuild_v1.CreateBuildRequest(request), timeout=TIMEOUT)
        return str(operation.metadata.build.id)

    @_call
    def build(self, location: str, identity: str) -> Mapping[str, Any]:
        """The build as it stands."""
        cloudbuild_v1 = _module("google.cloud.devtools.cloudbuild_v1")
        names = {"name": f"{location}/builds/{identity}"}
        return _plain(self._build().get_build(cloudbuild_v1.GetBuildRequest(names), timeout=TIMEOUT))

    @_call
    def builds(self, location: str, tag: str) -> tuple[Mapping[str, Any], ...]:
        """Builds with a tag, the newest first."""
        cloudbuild_v1 = _module("google.cloud.devtools.cloudbuild_v1")
        names = {"parent": location, "filter": f'tags="{tag}"', "page_size": 10}
        found = self._build().list_builds(cloudbuild_v1.ListBuildsRequest(names), timeout=TIMEOUT)
        return tuple(_plain(item) for item in next(iter(found.pages)).builds)

    @_call
    def default_build_account(self, location: str) -> str:
        """The account that Cloud Build uses when none is named."""
        name = f"{location}/defaultServiceAccount"
        answer = self._build().get_default_service_account(name=name, timeout=TIMEOUT)
        return str(answer.service_account_email).rsplit("/", 1)[-1]

    # Cloud Run

    def service(self, name: str) -> Mapping[str, Any] | None:
        """The service as it is deployed; None when there is none."""
        try:
            with mapped():
                return _plain(self._run().get_service(name=name, timeout=TIMEOUT))
        except ResourceNotFound:
            return None

    @_call
    def create_service(self, name: str, spec: Mapping[str, Any], *, validate_only: bool) -> Pending:
        """Make a service."""
        run_v2 = _module("google.cloud.run_v2")
        parent, _, short = name.partition("/services/")
        service = run_v2.Service({key: value for key, value in spec.items() if key != "name"})
        request = {"parent": parent, "service_id": short, "service": service, "validate_only": validate_only}
        return _pending(
            "the revision", self._run().create_service(run_v2.CreateServiceRequest(request), timeout=TIMEOUT)
        )

    @_call
    def update_service(self, spec: Mapping[str, Any], *, validate_only: bool) -> Pending:
        """Replace a service; `spec["etag"]` guards against others.

        Raises:
            ResourceConflict: the service changed in between.
        """
        run_v2 = _module("google.cloud.run_v2")
        request = run_v2.UpdateServiceRequest({"service": run_v2.Service(dict(spec)), "validate_only": validate_only})
        return _pending("the revision", self._run().update_service(request, timeout=TIMEOUT))

    @_call
    def delete_service(self, name: str) -> Pending:
        """Remove a service with its revisions."""
        return _pending("removing the service", self._run().delete_service(name=name, timeout=TIMEOUT))

    def revision(self, name: str) -> Mapping[str, Any] | None:
        """One revision; None when there is none."""
        try:
            with mapped():
                return _plain(self._revisions().get_revision(name=name, timeout=TIMEOUT))
        except ResourceNotFound:
            return None

    @_call
    def revisions(self, service: str) -> tuple[Mapping[str, Any], ...]:
        """Every revision, the newest first."""
        return tuple(_plain(item) for item in self._revisions().list_revisions(parent=service, timeout=TIMEOUT))

    @_call
    def services(self, location: str) -> tuple[Mapping[str, Any], ...]:
        """Every service of a region."""
        return tuple(_plain(item) for item in self._run().list_services(parent=location, timeout=TIMEOUT))

    # Logging

    @_call
    def log_entries(self, project: str, filter_: str, *, newest: int) -> tuple[Mapping[str, Any], ...]:
        """`{"id", "time", "severity", "text"}` of the newest entries that match, the oldest of them first."""
        body = {
            "resourceNames": [f"projects/{project}"],
            "filter": filter_,
            "orderBy": "timestamp desc",
            "pageSize": newest,
        }
        answer = self._session().post(
            f"{self._endpoints.of('logging.googleapis.com')}/v2/entries:list", json=body, timeout=TIMEOUT
        )
        if answer.status_code != 200:
            raise _module("google.api_core.exceptions").from_http_response(answer)
        return tuple(_entry(item) for item in reversed(answer.json().get("entries", [])))

    # Clients

    def _client(self, name: str, make: Callable[[], Any]) -> Any:
        with self._lock:
            if name not in self._clients:
                self._clients[name] = make()
            return self._clients[name]

    def _rest(self, module: str, client: str, host: str) -> Any:
        def make() -> Any:
            options = {"api_endpoint": self._endpoints.of(host)} if self._endpoints.rest else {}
            kind = getattr(_module(module), client)
            return kind(credentials=self._credentials, transport="rest", client_options=options)

        return self._client(f"{module}.{client}", make)

    def _session(self) -> Any:
        def make() -> Any:
            return _module("google.auth.transport.requests").AuthorizedSession(self._credentials)

        return self._client("session", make)

    def _usage(self) -> Any:
        return self._rest("google.cloud.service_usage_v1", "ServiceUsageClient", "serviceusage.googleapis.com")

    def _projects(self) -> Any:
        host = "cloudresourcemanager.googleapis.com"
        return self._rest("google.cloud.resourcemanager_v3", "ProjectsClient", host)

    def _billing(self) -> Any:
        return self._rest("google.cloud.billing_v1", "CloudBillingClient", "cloudbilling.googleapis.com")

    def _org_policy(self) -> Any:
        return self._rest("google.cloud.orgpolicy_v2", "OrgPolicyClient", "orgpolicy.googleapis.com")

    def _quotas(self) -> Any:
        return self._rest("google.cloud.cloudquotas_v1", "CloudQuotasClient", "cloudquotas.googleapis.com")

    def _troubleshooter(self) -> Any:
        host = "policytroubleshooter.googleapis.com"
        return self._rest("google.cloud.policytroubleshooter_v1", "IamCheckerClient", host)

    def _tokens(self) -> Any:
        return self._rest("google.cloud.iam_credentials_v1", "IAMCredentialsClient", "iamcredentials.googleapis.com")

    def _registry(self) -> Any:
        host = "artifactregistry.googleapis.com"
        return self._rest("google.cloud.artifactregistry_v1", "ArtifactRegistryClient", host)

    def _build(self) -> Any:
        return self._rest("google.cloud.devtools.cloudbuild_v1", "CloudBuildClient", "cloudbuild.googleapis.com")

    def _run(self) -> Any:
        return self._rest("google.cloud.run_v2", "ServicesClient", "run.googleapis.com")

    def _revisions(self) -> Any:
        return self._rest("google.cloud.run_v2", "RevisionsClient", "run.googleapis.com")

    def _storage(self) -> Any:
        def make() -> Any:
            options = {"api_endpoint": self._endpoints.of("storage.googleapis.com")} if self._endpoints.rest else {}
            # The project is named with every call that wants one; "-" keeps the client from looking for one itself.
            return _module("google.cloud.storage").Client(
                project="-", credentials=self._credentials, client_options=options
            )

        return self._client("storage", make)

    def _bucket(self, name: str) -> Any:
        return self._storage().bucket(name)

    def _iam(self) -> Any:
        def make() -> Any:
            client = _module("google.cloud.iam_admin_v1").IAMClient
            if not self._endpoints.grpc:
                return client(credentials=self._credentials)
            channel = _insecure_channel(self._endpoints.grpc, str(self._credentials.token))
            transport = _module("google.cloud.iam_admin_v1.services.iam.transports.grpc").IAMGrpcTransport
            return client(transport=transport(channel=channel))

        return self._client("iam", make)

    def _iam_client(self, resource: Resource) -> Any:
        return {
            Kind.PROJECT: self._projects,
            Kind.REPOSITORY: self._registry,
            Kind.ACCOUNT: self._iam,
            Kind.SERVICE: self._run,
        }[resource.kind]()

    def _iam_name(self, resource: Resource) -> str:
        if resource.kind is Kind.PROJECT:
            return f"projects/{resource.name}"
        if resource.kind is Kind.ACCOUNT:
            return f"projects/{resource.project}/serviceAccounts/{resource.name}"
        return resource.name


def _module(name: str) -> Any:
    """Google's modules on first use: importing them all costs a second, and their stubs are patchy.

    Raises:
        MissingExtra: they are not installed.
    """
    try:
        return import_module(name)
    except ImportError as exc:
        raise MissingExtra(f"{name} is not installed; run `pip install 'coldstream[deploy]'`") from exc


def _pending(what: str, operation: Any) -> Pending:
    def poll() -> bool:
        with mapped():
            if not operation.done():
                return False
            operation.result(timeout=0)
            return True

    return Pending(what, poll)


def _plain(message: Any) -> dict[str, Any]:
    result: dict[str, Any] = type(message).to_dict(
        message, use_integers_for_enums=False, always_print_fields_with_no_presence=False
    )
    return result


def _plain_policy(policy: Any) -> dict[str, Any]:
    json_format = _module("google.protobuf.json_format")
    bindings = [json_format.MessageToDict(item, preserving_proto_field_name=True) for item in policy.bindings]
    return {"bindings": bindings, "etag": policy.etag}


def _proto_policy(policy: Mapping[str, Any]) -> Any:
    json_format = _module("google.protobuf.json_format")
    version = 3 if any("condition" in item for item in policy["bindings"]) else 1
    message = _module("google.iam.v1.policy_pb2").Policy(version=version, etag=policy["etag"])
    for item in policy["bindings"]:
        json_format.ParseDict(item, message.bindings.add())
    return message


def _entry(item: Mapping[str, Any]) -> Mapping[str, Any]:
    payload = item.get("jsonPayload", {})
    text = item.get("textPayload") or payload.get("message") or payload.get("event") or str(payload or "")
    known = {"id": item.get("insertId", ""), "time": item.get("timestamp", "")}
    return {**known, "severity": item.get("severity", "DEFAULT"), "text": text.rstrip("\n")}


def _insecure_channel(target: str, token: str) -> Any:
    """A plain-text gRPC channel to a local fake, with the caller's token on every call."""
    grpc = _module("grpc")

    class Authorization(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc,name-defined]
        def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            metadata = [*(details.metadata or []), ("authorization", f"Bearer {token}")]
            return continuation(details._replace(metadata=metadata), request)

    return grpc.intercept_channel(grpc.insecure_channel(target), Authorization())
