"""Who asks, where, and with which client: each is made on first use and spoken to over REST, IAM admin over gRPC."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from coldstream.deploy.clock import Clock, SystemClock
from coldstream.deploy.google.mapping import module
from coldstream.deploy.google.transcript import Transcript
from coldstream.errors import PermissionRefused

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

SCOPES = ("https://www.googleapis.com/auth/cloud-platform", "https://www.googleapis.com/auth/userinfo.email")
TIMEOUT = 60.0
CONNECTIONS = 32
SECRETS = "secretmanager.googleapis.com"
KEYS = "cloudkms.googleapis.com"
NETWORKS = "compute.googleapis.com"
# How every client is called: what is worth asking again is decided by `mapping`, on our clock.
ONCE: Mapping[str, Any] = MappingProxyType({"timeout": TIMEOUT, "retry": None})


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


class Clients:
    """Google's clients for one caller; safe to use from several threads.

    `quota_project` is charged for every call. Without one, a user's calls are charged to the project of gcloud itself,
    where these APIs are off (https://cloud.google.com/docs/quotas/quota-project).
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        quota_project: str | None = None,
        endpoints: Endpoints = Endpoints(),
        clock: Clock | None = None,
        transcript: Transcript | None = None,
    ) -> None:
        charged = getattr(credentials, "with_quota_project", None)
        self._uncharged = credentials
        self._credentials = credentials if charged is None or quota_project is None else charged(quota_project)
        self._endpoints = endpoints
        self._clock = SystemClock() if clock is None else clock
        self._transcript = transcript
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def clock(self) -> Clock:
        """What pauses between two tries are taken on."""
        return self._clock

    def _client(self, name: str, make: Callable[[], Any]) -> Any:
        with self._lock:
            if name not in self._clients:
                self._clients[name] = make()
            return self._clients[name]

    def _rest(self, package: str, client: str, host: str) -> Any:
        def make() -> Any:
            options = {"api_endpoint": self._endpoints.of(host)} if self._endpoints.rest else {}
            kind = getattr(module(package), client)
            made = kind(credentials=self._credentials, transport="rest", client_options=options)
            self._watch(made.transport._session)
            return made

        return self._client(f"{package}.{client}", make)

    def _session(self) -> Any:
        def make() -> Any:
            session = module("google.auth.transport.requests").AuthorizedSession(self._credentials)
            for scheme in ("https://", "http://"):
                session.mount(scheme, module("requests.adapters").HTTPAdapter(pool_maxsize=CONNECTIONS))
            self._watch(session)
            return session

        return self._client("session", make)

    def _watch(self, session: Any) -> None:
        if self._transcript is not None:
            self._transcript.watch(session)

    def _uncharged_session(self) -> Any:
        """For the one call that is no API of the project's: with a quota project it would want to be one."""

        def make() -> Any:
            plain = getattr(self._uncharged, "with_quota_project", None)
            credentials = self._uncharged if plain is None else plain(None)
            return module("google.auth.transport.requests").AuthorizedSession(credentials)

        return self._client("uncharged session", make)

    def _json(self, http: str, host: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One call of an API that has no client among the dependencies; its answer as it is."""
        url = f"{self._endpoints.of(host)}/{path}"
        answer = self._session().request(http, url, json=body, timeout=TIMEOUT)
        if answer.status_code != 200:
            raise module("google.api_core.exceptions").from_http_response(answer)
        return answer.json()

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

    def _jobs(self) -> Any:
        return self._rest("google.cloud.run_v2", "JobsClient", "run.googleapis.com")

    def _storage(self) -> Any:
        def make() -> Any:
            options = {"api_endpoint": self._endpoints.of("storage.googleapis.com")} if self._endpoints.rest else {}
            # The project is named with every call that wants one; "-" keeps the client from looking for one itself.
            made = module("google.cloud.storage").Client(
                project="-", credentials=self._credentials, client_options=options
            )
            self._watch(made._http)
            return made

        return self._client("storage", make)

    def _bucket(self, name: str) -> Any:
        return self._storage().bucket(name)

    def _iam(self) -> Any:
        def make() -> Any:
            client = module("google.cloud.iam_admin_v1").IAMClient
            if not self._endpoints.grpc:
                return client(credentials=self._credentials)
            channel = _insecure_channel(self._endpoints.grpc, self._credentials)
            transport = module("google.cloud.iam_admin_v1.services.iam.transports.grpc").IAMGrpcTransport
            return client(transport=transport(channel=channel))

        return self._client("iam", make)


def _insecure_channel(target: str, credentials: Any) -> Any:
    """A plain-text gRPC channel to a local fake, with the caller's token and quota project on every call."""
    grpc = module("grpc")

    class Authorization(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc,name-defined]
        def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            headers: dict[str, str] = {}
            credentials.apply(headers)
            metadata = [*(details.metadata or []), *headers.items()]
            return continuation(details._replace(metadata=metadata), request)

    return grpc.intercept_channel(grpc.insecure_channel(target), Authorization())
