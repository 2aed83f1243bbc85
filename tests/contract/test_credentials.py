"""Who may read: application default credentials of every kind, and none."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from coldstream.errors import AccessDenied
from coldstream.weights.checkpoint.checkpoint import open_checkpoint_async
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.open_store import open_store
from coldstream.weights.transfer.retry import RetryPolicy
from tests.support import files
from tests.support.servers import GoogleServer, Handler

URI = "gs://private/model"
FAST = RetryPolicy(attempts=2, first_delay=0.001)


@pytest.fixture
def storage() -> Iterator[GoogleServer]:
    folder = {f"private/model/{name}": data for name, data in files.checkpoint(files.model()).items()}
    with GoogleServer(folder, token="good") as server:
        yield server


class TokenServer:
    """Answers every request with what `answer` gives for it; keeps the requests."""

    def __init__(self, answer: Callable[[str], tuple[int, Mapping[str, Any]]]) -> None:
        self.seen: list[tuple[str, str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                outer.seen.append((self.path, body, self.headers.get("Metadata-Flavor")))
                status, grant = answer(self.path)
                text = json.dumps(grant).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.send_header("Metadata-Flavor", "Google")
                self.end_headers()
                self.wfile.write(text)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> TokenServer:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def grants(path: str) -> tuple[int, Mapping[str, Any]]:
    return 200, {"access_token": "good", "expires_in": 3600, "token_type": "Bearer"}


async def read_with(storage: GoogleServer, environ: Mapping[str, str]) -> int:
    """The number of tensors that can be read."""
    everything = {"HOME": "/nonexistent", "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": storage.url, **environ}
    store = open_store(Location.parse(URI), environ=everything, patience=0.1)
    checkpoint = await open_checkpoint_async(URI, store=store, retry=FAST)
    return len(checkpoint.tensors)


async def test_the_metadata_server_gives_one_token_for_the_listing_and_all_reads(storage: GoogleServer) -> None:
    with TokenServer(grants) as metadata:
        assert await read_with(storage, {"GCE_METADATA_HOST": metadata.host}) == len(files.model())
    assert len(metadata.seen) == 1
    path, _, flavor = metadata.seen[0]
    assert path == "/computeMetadata/v1/instance/service-accounts/default/token"
    assert flavor == "Google"


async def test_a_token_that_is_about_to_expire_is_renewed(storage: GoogleServer) -> None:
    with TokenServer(lambda path: (200, {"access_token": "good", "expires_in": 60})) as metadata:
        await read_with(storage, {"GCE_METADATA_HOST": metadata.host})
    assert len(metadata.seen) > 1


@pytest.fixture
def service_account() -> Mapping[str, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return {
        "type": "service_account",
        "client_email": "a@b.iam.gserviceaccount.com",
        "private_key": pem,
        "project_id": "p",
    }


async def test_a_service_accounts_key(
    storage: GoogleServer, service_account: Mapping[str, str], tmp_path: Path
) -> None:
    with TokenServer(grants) as issuer:
        path = tmp_path / "key.json"
        path.write_text(json.dumps({**service_account, "token_uri": f"http://{issuer.host}/token"}))
        assert await read_with(storage, {"GOOGLE_APPLICATION_CREDENTIALS": str(path)}) == len(files.model())
    assert "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer" in issuer.seen[0][1]


async def test_a_users_login_by_gcloud(storage: GoogleServer, tmp_path: Path) -> None:
    with TokenServer(grants) as issuer:
        login = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}
        login["token_uri"] = f"http://{issuer.host}/token"
        folder = tmp_path / ".config" / "gcloud"
        folder.mkdir(parents=True)
        (folder / "application_default_credentials.json").write_text(json.dumps(login))
        assert await read_with(storage, {"HOME": str(tmp_path)}) == len(files.model())
    assert "refresh_token=r" in issuer.seen[0][1]


LOGIN = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}


async def read_with_file(storage: GoogleServer, folder: Path, info: Mapping[str, Any]) -> int:
    path = folder / "adc.json"
    path.write_text(json.dumps(info))
    return await read_with(storage, {"GOOGLE_APPLICATION_CREDENTIALS": str(path)})


async def test_an_account_that_a_login_impersonates(storage: GoogleServer, tmp_path: Path) -> None:
    def answer(path: str) -> tuple[int, Mapping[str, Any]]:
        if path.endswith(":generateAccessToken"):
            return 200, {"accessToken": "good", "expireTime": "2099-01-01T00:00:00Z"}
        return 200, {"access_token": "source", "expires_in": 3600, "token_type": "Bearer"}

    with TokenServer(answer) as issuer:
        account = f"http://{issuer.host}/v1/projects/-/serviceAccounts/x@y.iam.gserviceaccount.com"
        info = {
            "type": "impersonated_service_account",
            "service_account_impersonation_url": f"{account}:generateAccessToken",
            "source_credentials": {**LOGIN, "token_uri": f"http://{issuer.host}/token"},
        }
        assert await read_with_file(storage, tmp_path, info) == len(files.model())


POOL = {
    "type": "external_account",
    "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
}


async def test_workload_identity_from_a_file(storage: GoogleServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("subject")
    kind = "urn:ietf:params:oauth:token-type:jwt"
    with TokenServer(grants) as issuer:
        source = {"file": str(tmp_path / "token")}
        info = {
            **POOL,
            "subject_token_type": kind,
            "token_url": f"http://{issuer.host}/sts",
            "credential_source": source,
        }
        assert await read_with_file(storage, tmp_path, info) == len(files.model())
    assert "subject_token=subject" in issuer.seen[0][1]


async def test_workload_identity_from_aws(
    storage: GoogleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(name, value)
    with TokenServer(grants) as issuer:
        info = {
            **POOL,
            "subject_token_type": "urn:ietf:params:aws:token-type:aws4_request",
            "token_url": f"http://{issuer.host}/sts",
            "credential_source": {
                "environment_id": "aws1",
                "regional_cred_verification_url": "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity",
            },
        }
        assert await read_with_file(storage, tmp_path, info) == len(files.model())


async def test_a_workforces_login(storage: GoogleServer, tmp_path: Path) -> None:
    with TokenServer(grants) as issuer:
        info = {
            "type": "external_account_authorized_user",
            "audience": "//iam.googleapis.com/locations/global/workforcePools/p/providers/q",
            "refresh_token": "r",
            "token_url": f"http://{issuer.host}/sts",
            "client_id": "i",
            "client_secret": "s",
        }
        assert await read_with_file(storage, tmp_path, info) == len(files.model())


async def test_a_program_that_gives_the_subject_runs_only_where_that_is_allowed(
    storage: GoogleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "urn:ietf:params:oauth:token-type:jwt"
    answer = {"version": 1, "success": True, "token_type": kind, "id_token": "subject", "expiration_time": 4102444800}
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    program.chmod(0o700)
    with TokenServer(grants) as issuer:
        info = {
            **POOL,
            "subject_token_type": kind,
            "token_url": f"http://{issuer.host}/sts",
            "credential_source": {"executable": {"command": str(program)}},
        }
        with pytest.raises(AccessDenied, match="GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES"):
            await read_with_file(storage, tmp_path, info)
        monkeypatch.setenv("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1")
        assert await read_with_file(storage, tmp_path, info) == len(files.model())


async def test_a_login_names_the_project_that_pays(storage: GoogleServer, tmp_path: Path) -> None:
    paid: list[str | None] = []
    answer = storage.answer

    def noting(handler: Handler) -> None:
        paid.append(handler.headers.get("x-goog-user-project"))
        answer(handler)

    storage.answer = noting  # type: ignore[method-assign]  the server asks for it at each request
    with TokenServer(grants) as issuer:
        info = {**LOGIN, "token_uri": f"http://{issuer.host}/token", "quota_project_id": "payer"}
        await read_with_file(storage, tmp_path, info)
    assert set(paid) == {"payer"}


async def test_a_login_that_was_revoked(storage: GoogleServer, tmp_path: Path) -> None:
    with TokenServer(lambda path: (400, {"error": "invalid_grant"})) as issuer:
        login = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}
        path = tmp_path / "adc.json"
        path.write_text(json.dumps({**login, "token_uri": f"http://{issuer.host}/token"}))
        with pytest.raises(AccessDenied, match=r"adc\.json.*invalid_grant"):
            await read_with(storage, {"GOOGLE_APPLICATION_CREDENTIALS": str(path)})


@pytest.mark.parametrize("text", ["", "{", "{}", '{"type": "other"}'])
async def test_a_credentials_file_that_is_none(storage: GoogleServer, tmp_path: Path, text: str) -> None:
    path = tmp_path / "adc.json"
    path.write_text(text)
    with pytest.raises(AccessDenied, match=r"adc\.json"):
        await read_with(storage, {"GOOGLE_APPLICATION_CREDENTIALS": str(path)})


async def test_a_credentials_file_that_is_not_there(storage: GoogleServer) -> None:
    with pytest.raises(AccessDenied, match="no such file"):
        await read_with(storage, {"GOOGLE_APPLICATION_CREDENTIALS": "/nonexistent/key.json"})


async def test_no_credentials_at_all(storage: GoogleServer) -> None:
    with pytest.raises(AccessDenied, match="gcloud auth application-default login"):
        await read_with(storage, {"GCE_METADATA_HOST": "127.0.0.1:1"})


async def test_credentials_without_the_right(storage: GoogleServer) -> None:
    other = {"access_token": "other", "expires_in": 3600}
    says = r"gs://private/model.*401.*objectViewer"
    with TokenServer(lambda path: (200, other)) as metadata, pytest.raises(AccessDenied, match=says):
        await read_with(storage, {"GCE_METADATA_HOST": metadata.host})


async def test_a_metadata_server_that_is_busy_is_asked_again(storage: GoogleServer) -> None:
    answers = iter([(503, {}), grants(""), grants("")])
    with TokenServer(lambda path: next(answers)) as metadata:
        assert await read_with(storage, {"GCE_METADATA_HOST": metadata.host}) == len(files.model())


@pytest.mark.parametrize("grant", [{}, {"access_token": "a"}, [], "x"])
async def test_a_metadata_server_that_answers_nonsense(storage: GoogleServer, grant: Any) -> None:
    with TokenServer(lambda path: (200, grant)) as metadata, pytest.raises(AccessDenied, match="metadata"):
        await read_with(storage, {"GCE_METADATA_HOST": metadata.host})
