"""What a Google bucket may answer besides bytes, and what is made of it."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from email.utils import formatdate
from urllib.parse import unquote

import pytest

from coldstream.errors import AccessDenied, BadResponse, ChecksumMismatch
from coldstream.weights.checkpoint.checkpoint import Checkpoint, open_checkpoint_async
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.open_store import open_store
from coldstream.weights.transfer.progress import Progress
from coldstream.weights.transfer.retry import RetryPolicy
from coldstream.weights.transfer.stream import StreamOptions, stream
from tests.contract.test_credentials import TokenServer, grants
from tests.support import files
from tests.support.servers import GoogleServer, Handler

URI = "gs://models/model"
FAST = RetryPolicy(attempts=2, first_delay=0.001)
TENSORS = files.model()
FILES = {f"models/model/{name}": data for name, data in files.checkpoint(TENSORS).items()}

# Answers a request itself: True.
Gate = Callable[[Handler], bool]


class Gated(GoogleServer):
    """Every request passes the gate first."""

    def __init__(self, contents: Mapping[str, bytes] = FILES, *, token: str | None = "good", gate: Gate) -> None:
        super().__init__(contents, token=token)
        self._gate = gate

    def answer(self, handler: Handler) -> None:
        if not self._gate(handler):
            super().answer(handler)


@pytest.fixture
def metadata() -> Iterator[TokenServer]:
    with TokenServer(grants) as server:
        yield server


async def opened(server: GoogleServer, environ: Mapping[str, str], *, patience: float = 0.1) -> Checkpoint:
    everything = {"HOME": "/nonexistent", "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": server.url, **environ}
    store = open_store(Location.parse(URI), environ=everything, patience=patience)
    return await open_checkpoint_async(URI, store=store, retry=FAST)


async def load(server: GoogleServer, environ: Mapping[str, str], progress: Progress | None = None) -> dict[str, bytes]:
    checkpoint = await opened(server, environ)
    options = StreamOptions(part_size=256, concurrency=2, retry=FAST)
    streamed = stream(checkpoint, options=options, progress=progress)
    return {landed.info.name: bytes(landed.data) async for landed in streamed}


def right() -> dict[str, bytes]:
    return {name: data for name, (_, _, data) in TENSORS.items()}


def refuses(status: int, body: bytes) -> Gate:
    def gate(handler: Handler) -> bool:
        handler.reply(status, {"Content-Type": "application/json"}, body)
        return True

    return gate


def error(message: str, reason: str, status: int = 403) -> bytes:
    return json.dumps({"error": {"code": status, "message": message, "errors": [{"reason": reason}]}}).encode()


@pytest.mark.parametrize(
    ("message", "reason", "mends"),
    [
        ("Request is prohibited by organization's policy. ID: abc123", "vpcServiceControls", "ingress rule"),
        ("The billing account for the owning project is disabled", "accountDisabled", "enable billing"),
        ("Cloud Storage API has not been used in project 1 before", "accessNotConfigured", "gcloud services enable"),
        ("a@b does not have storage.objects.list access", "forbidden", "roles/storage.objectViewer"),
        ("a@b does not have serviceusage.services.use access", "forbidden", "serviceUsageConsumer"),
    ],
)
async def test_a_refusal_repeats_the_stores_reason_and_says_what_mends_it(
    metadata: TokenServer, message: str, reason: str, mends: str
) -> None:
    with Gated(gate=refuses(403, error(message, reason))) as server, pytest.raises(AccessDenied) as caught:
        await opened(server, {"GCE_METADATA_HOST": metadata.host})
    assert message[:30] in str(caught.value)
    assert mends in str(caught.value)


async def test_a_refusal_of_bytes_repeats_the_stores_reason(metadata: TokenServer) -> None:
    body = b"<Error><Code>SecurityPolicyViolated</Code><Message>Outside.</Message><Details>ID: abc</Details></Error>"

    def gate(handler: Handler) -> bool:
        if "/storage/v1/" not in handler.path:
            handler.reply(403, {"Content-Type": "application/xml"}, body)
            return True
        return False

    says = r"gs://models/model/\S+: access denied \(HTTP 403: SecurityPolicyViolated: Outside.: ID: abc\); .*ingress"
    with Gated(gate=gate) as server, pytest.raises(AccessDenied, match=says):
        await opened(server, {"GCE_METADATA_HOST": metadata.host})


def wants_a_payer(handler: Handler) -> bool:
    if handler.headers.get("x-goog-user-project") == "payer":
        return False
    handler.reply(400, {}, error("Bucket is a requester pays bucket but no user project provided.", "required", 400))
    return True


async def test_a_bucket_whose_readers_pay_is_read_on_the_quota_project(metadata: TokenServer) -> None:
    environ = {"GCE_METADATA_HOST": metadata.host, "GOOGLE_CLOUD_QUOTA_PROJECT": "payer"}
    with Gated(gate=wants_a_payer) as server:
        assert await load(server, environ) == right()


async def test_a_bucket_whose_readers_pay_says_how(metadata: TokenServer) -> None:
    says = "requester pays.*GOOGLE_CLOUD_QUOTA_PROJECT"
    with Gated(gate=wants_a_payer) as server, pytest.raises(AccessDenied, match=says):
        await opened(server, {"GCE_METADATA_HOST": metadata.host})


async def test_a_token_that_is_refused_in_mid_load_is_replaced_once() -> None:
    tokens = ["a", "b"]
    reads = 0

    def gate(handler: Handler) -> bool:
        nonlocal reads
        reads += "/storage/v1/" not in handler.path
        server.token = "a" if reads < 6 else "b"
        return False

    def answer(path: str) -> tuple[int, Mapping[str, object]]:
        return 200, {"access_token": tokens.pop(0) if len(tokens) > 1 else tokens[0], "expires_in": 3600}

    with Gated(gate=gate) as server, TokenServer(answer) as metadata:
        assert await load(server, {"GCE_METADATA_HOST": metadata.host}) == right()
    assert len(metadata.seen) == 2


async def test_a_token_that_is_refused_for_good_is_an_error_after_one_more(metadata: TokenServer) -> None:
    with Gated(token="other", gate=lambda handler: False) as server, pytest.raises(AccessDenied, match="HTTP 401"):
        await opened(server, {"GCE_METADATA_HOST": metadata.host})
    assert len(metadata.seen) == 2


async def test_a_public_bucket_is_read_without_credentials_and_this_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with GoogleServer(FILES, token=None) as server:
        assert await load(server, {"GCE_METADATA_HOST": "127.0.0.1:1"}) == right()
    assert [record.message.partition(": ")[0] for record in caplog.records if "public" in record.message] == [URI]


@pytest.mark.parametrize("status", [404, 403])
async def test_a_metadata_server_that_has_no_account_yet_is_waited_for(status: int) -> None:
    answers = [(status, {}), (status, {}), grants("")]

    def answer(path: str) -> tuple[int, Mapping[str, object]]:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    with GoogleServer(FILES, token="good") as server, TokenServer(answer) as metadata:
        checkpoint = await opened(server, {"GCE_METADATA_HOST": metadata.host}, patience=20.0)
    assert len(checkpoint.tensors) == len(TENSORS)


@pytest.mark.more
async def test_a_metadata_server_that_comes_up_late_is_waited_for() -> None:
    late = TokenServer(grants)  # bound, so connections are taken, but not answered yet
    asked = threading.Event()

    def gate(handler: Handler) -> bool:
        asked.set()
        return False

    def come_up() -> None:
        asked.wait()
        late.__enter__()

    starter = threading.Thread(target=come_up)
    starter.start()
    with Gated(gate=gate) as server:
        checkpoint = await opened(server, {"GCE_METADATA_HOST": late.host}, patience=30.0)
    starter.join()
    late.__exit__()
    assert len(checkpoint.tensors) == len(TENSORS)


async def test_an_object_that_is_stored_compressed_is_named(metadata: TokenServer) -> None:
    """Cloud Storage unpacks it while it is read, and then knows no ranges."""

    def gate(handler: Handler) -> bool:
        if not unquote(handler.path).startswith("/models/model/config.json"):
            return False
        named = {"ETag": "one", "Last-Modified": formatdate(1000, usegmt=True), "x-goog-generation": "1"}
        handler.reply(200, {"x-goog-stored-content-encoding": "gzip", **named}, b"{}")
        return True

    class Compressed(Gated):
        def item(self, name: str, data: bytes, *, listed: bool) -> dict[str, str]:
            return super().item(name, data, listed=listed) | {"contentEncoding": "gzip"}

    contents = FILES | {"models/model/config.json": gzip.compress(b"{}")}
    says = r"config\.json: is stored compressed.*Content-Encoding.*-Z"
    with Compressed(contents, gate=gate) as server, pytest.raises(BadResponse, match=says):
        await opened(server, {"GCE_METADATA_HOST": metadata.host})


class Unlisted(GoogleServer):
    """The listing leaves checksums out, as it does for objects under a customer's key; the objects have them."""

    def item(self, name: str, data: bytes, *, listed: bool) -> dict[str, str]:
        found = super().item(name, data, listed=listed)
        return {key: value for key, value in found.items() if key != "crc32c"} if listed else found


class Damaged(Unlisted):
    def item(self, name: str, data: bytes, *, listed: bool) -> dict[str, str]:
        return super().item(name, FILES[f"models/{name}"], listed=listed)


async def test_a_checksum_that_the_listing_has_not_is_asked_for(metadata: TokenServer) -> None:
    progress = Progress()
    with Unlisted(FILES, token="good") as server:
        assert await load(server, {"GCE_METADATA_HOST": metadata.host}, progress) == right()
    assert progress.verified == ("model.safetensors",)


async def test_bytes_that_changed_are_found_though_the_listing_has_no_checksum(metadata: TokenServer) -> None:
    name = "models/model/model.safetensors"
    flipped = FILES | {name: FILES[name][:-1] + bytes([FILES[name][-1] ^ 0x80])}
    with Damaged(flipped, token="good") as server, pytest.raises(ChecksumMismatch, match=r"model\.safetensors"):
        await load(server, {"GCE_METADATA_HOST": metadata.host})
