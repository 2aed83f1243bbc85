"""The fake on the wire: REST on one port (`/SERVICE.googleapis.com/...`), IAM admin over gRPC on another.

Every request is held against the discovery documents before it is answered; what they do not allow is kept in
`world.violations`, which the tests' fixture wants to be empty.
"""

from __future__ import annotations

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import grpc
from google.cloud import iam_admin_v1
from google.iam.v1 import iam_policy_pb2, policy_pb2
from google.protobuf import json_format

from tests.fakecloud import build, discovery, methods, run
from tests.fakecloud.methods import Call
from tests.fakecloud.world import ALWAYS_ON, GCLOUD_PROJECT, CloudError, World

HANDLERS = {**methods.HANDLERS, **build.HANDLERS, **run.HANDLERS}
PAID = {"run", "cloudbuild", "artifactregistry"}
NEVER_OFF = {"www.googleapis.com", "storage.googleapis.com"}


class FakeCloud:
    """A running fake. `latency` is added to every call, outside the lock, as a network would."""

    def __init__(self, world: World, *, latency: float = 0.0) -> None:
        self.world = world
        self.latency = latency
        self._lock = threading.RLock()
        self._http = _Server(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._grpc = grpc.server(ThreadPoolExecutor(max_workers=8))
        self._grpc.add_generic_rpc_handlers((_IamAdmin(self),))
        self._grpc_port = self._grpc.add_insecure_port("127.0.0.1:0")
        world.base_url = self.url

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def grpc_target(self) -> str:
        return f"127.0.0.1:{self._grpc_port}"

    def __enter__(self) -> FakeCloud:
        self._grpc.start()
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self._grpc.stop(None).wait()

    def answer(self, service: str, http: str, path: str, query: dict[str, list[str]], request: _Request) -> Any:
        """Validate, authenticate, authorise, do."""
        time.sleep(self.latency)
        with self._lock:
            return self._answer(service, http, path, query, request)

    def _answer(self, service: str, http: str, path: str, query: dict[str, list[str]], request: _Request) -> Any:
        found = discovery.find(service, http, path)
        if found is None or found[0].id not in HANDLERS:
            what = "is not in the discovery document" if found is None else f"({found[0].id}) is not in the fake"
            self.world.violations.append(f"{http} {service} {path} {what}")
            raise CloudError(501, "UNIMPLEMENTED", self.world.violations[-1])
        method, variables = found
        body = self._published(method, query, request)
        self.world.requests.append((method.id, path))
        if self.world.on_request is not None:
            self.world.on_request(method.id)
        principal = self._principal(request.authorization)
        self._refuse_by_quota_project(service, principal, request.quota_project)
        if service in self.world.perimeter:
            text = "Request is prohibited by organization's policy. vpcServiceControlsUniqueIdentifier: abc123."
            raise CloudError(403, "PERMISSION_DENIED", text, reason="SECURITY_POLICY_VIOLATED")
        if _reads(method) and (status := self.world.hiccups()) is not None:
            name = "RESOURCE_EXHAUSTED" if status == 429 else "UNAVAILABLE"
            raise CloudError(status, name, "Please try again.")
        self._refuse_when_off(f"{service}.googleapis.com")
        if not self.world.billing and service in PAID:
            text = (
                f"This API method requires billing to be enabled. Please enable billing on project {self.world.number}."
            )
            raise CloudError(403, "PERMISSION_DENIED", text, reason="BILLING_DISABLED")
        variables = {key: unquote(value) for key, value in variables.items()}
        call = Call(self.world, method.id, variables, query, body or {}, principal, request.raw, request.content_type)
        return HANDLERS[method.id](call)

    def _published(self, method: discovery.Method, query: dict[str, list[str]], request: _Request) -> Any:
        body = json.loads(request.raw) if request.raw and "json" in request.content_type else None
        problems = []
        try:
            body = discovery.body_as_published(method, body) if body is not None else None
        except json_format.ParseError as error:
            problems.append(f"{method.id}: {error}")
        problems += discovery.violations(method, query, body)
        if problems:
            self.world.violations += problems
            raise CloudError(400, "INVALID_ARGUMENT", "; ".join(problems))
        return body

    def _refuse_by_quota_project(self, service: str, principal: str, quota_project: str) -> None:
        """A call is charged to the project that it names; a user's that names none, to gcloud's own."""
        api = f"{service}.googleapis.com"
        if api in NEVER_OFF and not quota_project:
            return
        if not quota_project and principal.startswith("user:"):
            text = f"{api} has not been used in project {GCLOUD_PROJECT} before or it is disabled."
            raise CloudError(403, "PERMISSION_DENIED", text, reason="SERVICE_DISABLED")
        if not quota_project:
            return
        if api == "www.googleapis.com":
            text = f"Google OAuth2 API has not been used in project {quota_project} before or it is disabled."
            raise CloudError(403, "PERMISSION_DENIED", text, reason="SERVICE_DISABLED")
        place = self.world.resource_of_project(quota_project)
        if not self.world.iam.allowed(principal, "serviceusage.services.use", place):
            text = (
                f"Caller does not have required permission to use project {quota_project}. Grant the caller the "
                "roles/serviceusage.serviceUsageConsumer role, or a custom role with the serviceusage.services.use "
                "permission."
            )
            raise CloudError(403, "PERMISSION_DENIED", text, reason="USER_PROJECT_DENIED")

    def _refuse_when_off(self, api: str) -> None:
        if api in self.world.apis | ALWAYS_ON | NEVER_OFF:
            return
        text = f"{api} has not been used in project {self.world.number} before or it is disabled."
        raise CloudError(403, "PERMISSION_DENIED", text, reason="SERVICE_DISABLED")

    def _principal(self, authorization: str) -> str:
        if not authorization.startswith("Bearer token-of:"):
            raise CloudError(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        return authorization.removeprefix("Bearer token-of:")


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


def _reads(method: discovery.Method) -> bool:
    """Looking changes nothing; a few looks are POSTs."""
    looks = ("testIamPermissions", "getIamPolicy", "troubleshoot", "entries.list")
    return method.http == "GET" or method.id.endswith(looks)


class _Request:
    def __init__(self, authorization: str, raw: bytes, content_type: str, quota_project: str) -> None:
        self.authorization, self.raw, self.content_type = authorization, raw, content_type
        self.quota_project = quota_project


def _handler(cloud: FakeCloud) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _do(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            authorization = self.headers.get("Authorization", "")
            parts = urlsplit(self.path)
            if parts.path.startswith("/app/"):
                with cloud._lock:
                    headers = dict(self.headers.items())
                    status, answer = run.application(cloud.world, self.command, parts.path, headers, raw)
                return self._send(status, answer)
            host, _, rest = parts.path.lstrip("/").partition("/")
            charged = self.headers.get("x-goog-user-project", "")
            request = _Request(authorization, raw, self.headers.get("Content-Type", ""), charged)
            try:
                service = host.removesuffix(".googleapis.com")
                query = parse_qs(parts.query, keep_blank_values=True)
                status, answer = 200, cloud.answer(service, self.command, f"/{rest}", query, request)
            except CloudError as error:
                status, answer = error.code, _error_body(error)
            self._send(status, answer)

        def _send(self, status: int, answer: Any) -> None:
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _do

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    return Handler


def _error_body(error: CloudError) -> dict[str, Any]:
    body: dict[str, Any] = {"code": error.code, "message": error.message, "status": error.status}
    if error.reason:
        kind = "type.googleapis.com/google.rpc.ErrorInfo"
        body["details"] = [{"@type": kind, "reason": error.reason, "domain": "googleapis.com", "metadata": {}}]
    return {"error": body}


_ADMIN = iam_admin_v1.types

# gRPC method: (request type, response type, HTTP method, path); a method's REST form is validated like any other.
_GRPC = {
    "GetServiceAccount": (_ADMIN.GetServiceAccountRequest.pb(), _ADMIN.ServiceAccount.pb(), "GET", "/v1/{name}"),
    "DeleteServiceAccount": (_ADMIN.DeleteServiceAccountRequest.pb(), None, "DELETE", "/v1/{name}"),
    "CreateServiceAccount": (
        _ADMIN.CreateServiceAccountRequest.pb(),
        _ADMIN.ServiceAccount.pb(),
        "POST",
        "/v1/{name}/serviceAccounts",
    ),
    "GetRole": (_ADMIN.GetRoleRequest.pb(), _ADMIN.Role.pb(), "GET", "/v1/{name}"),
    "TestIamPermissions": (
        iam_policy_pb2.TestIamPermissionsRequest,
        iam_policy_pb2.TestIamPermissionsResponse,
        "POST",
        "/v1/{resource}:testIamPermissions",
    ),
    "GetIamPolicy": (
        iam_policy_pb2.GetIamPolicyRequest,
        policy_pb2.Policy,
        "POST",
        "/v1/{resource}:getIamPolicy",
    ),
    "SetIamPolicy": (
        iam_policy_pb2.SetIamPolicyRequest,
        policy_pb2.Policy,
        "POST",
        "/v1/{resource}:setIamPolicy",
    ),
}
_STATUS = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


class _IamAdmin(grpc.GenericRpcHandler):
    """google.iam.admin.v1.IAM, which Google's client speaks over gRPC only, answered by the REST handlers."""

    def __init__(self, cloud: FakeCloud) -> None:
        self._cloud = cloud

    def service(self, details: Any) -> Any:
        name = details.method.rsplit("/", 1)[1]
        if not details.method.startswith("/google.iam.admin.v1.IAM/") or name not in _GRPC:
            return None
        request_type, response_type, http, template = _GRPC[name]
        metadata = dict(details.invocation_metadata)
        authorization, charged = metadata.get("authorization", ""), metadata.get("x-goog-user-project", "")

        def answer(message: Any, context: Any) -> Any:
            fields = json_format.MessageToDict(message)
            path = re.sub(r"\{(\w+)\}", lambda match: str(fields.pop(match.group(1))), template)
            # In its REST form this one option is a query parameter.
            options = fields.pop("options", {}) if name == "GetIamPolicy" else {}
            query = {f"options.{key}": [str(value)] for key, value in options.items()}
            raw = json.dumps(fields).encode() if http == "POST" and fields else b""
            try:
                request = _Request(authorization, raw, "application/json", charged)
                reply = self._cloud.answer("iam", http, path, query, request)
            except CloudError as error:
                code = grpc.StatusCode.ABORTED if error.status == "ABORTED" else _STATUS.get(error.code)
                context.abort(code or grpc.StatusCode.INVALID_ARGUMENT, error.message)
            return json_format.ParseDict(reply, response_type()) if response_type else _empty()

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=request_type.FromString,
            response_serializer=lambda item: item.SerializeToString(),
        )


def _empty() -> Any:
    from google.protobuf import empty_pb2

    return empty_pb2.Empty()
