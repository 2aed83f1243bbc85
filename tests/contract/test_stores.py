"""The contract, on every kind of store, each a real server."""

from __future__ import annotations

import os
import ssl
import stat
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trustme

from coldstream.demo.bucket import LocalBucket
from coldstream.errors import AccessDenied, BadResponse, LocationError, ObjectNotFound, StoreError
from coldstream.model.image_processor import PROCESSOR_FILES
from coldstream.weights.checkpoint.checkpoint import open_checkpoint_async
from coldstream.weights.checkpoint.file_names import TOKENIZER
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.open_store import open_store
from coldstream.weights.stores.store import read
from coldstream.weights.stores.web import WELL_KNOWN
from coldstream.weights.transfer.retry import RetryPolicy
from coldstream.weights.transfer.stream import stream
from tests.support import files
from tests.support.servers import BlobServer, RangeServer, free_port, program, spawn, stop
from tests.support.store_contract import Shelf, StoreContract, store_at


class GoogleShelf(Shelf):
    def __init__(self, bucket: LocalBucket) -> None:
        self.bucket = bucket

    def folder(self, name: str, contents: Mapping[str, bytes]) -> str:
        for file, data in contents.items():
            self.bucket.put("models", f"{name}/{file}", data)
        return f"gs://models/{name}"

    def replace(self, uri: str, name: str, data: bytes) -> None:
        self.bucket.put("models", f"{Location.parse(uri).path}/{name}", data)


@pytest.fixture(scope="module")
def google_bucket() -> Iterator[LocalBucket]:
    with LocalBucket() as bucket:
        yield bucket


class TestGoogle(StoreContract):
    """fake-gcs-server 1.54."""

    has_checksums = True

    @pytest.fixture
    def shelf(self, google_bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch) -> Shelf:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", google_bucket.url)
        return GoogleShelf(google_bucket)

    async def test_no_such_bucket(self, shelf: Shelf) -> None:
        with pytest.raises(ObjectNotFound, match="gs://no-such-bucket/model"):
            await store_at("gs://no-such-bucket/model").list()

    async def test_the_emulators_host_may_come_without_a_scheme(
        self, shelf: Shelf, google_bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uri = shelf.folder("host", {"config.json": b"{}"})
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", google_bucket.url.removeprefix("http://"))
        assert set(await store_at(uri).list()) == {"config.json"}


class FileShelf(Shelf):
    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, name: str, contents: Mapping[str, bytes]) -> str:
        for file, data in contents.items():
            (self.root / name / file).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name / file).write_bytes(data)
        return f"file://{self.root / name}"

    def replace(self, uri: str, name: str, data: bytes) -> None:
        path = Path(Location.parse(uri).path) / name
        path.unlink()
        path.write_bytes(data)


class TestFile(StoreContract):
    @pytest.fixture
    def shelf(self, tmp_path: Path) -> Shelf:
        return FileShelf(tmp_path)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    async def test_a_file_that_may_not_be_read(self, shelf: Shelf) -> None:
        uri = shelf.folder("secret", {"config.json": b"{}"})
        os.chmod(f"{Location.parse(uri).path}/config.json", stat.S_IWUSR)
        store = store_at(uri)
        pin = (await store.list())["config.json"]
        with pytest.raises(AccessDenied):
            await read(store, pin, 0, 2)

    async def test_a_link_within_the_folder_is_followed(self, shelf: Shelf, tmp_path: Path) -> None:
        uri = shelf.folder("links", {"config.json": b"{}", "below/real.json": b"12345"})
        os.symlink("below/real.json", tmp_path / "links" / "linked.json")
        os.symlink(tmp_path / "links", tmp_path / "another name")
        for name in ("links", "another name"):
            store = store_at(f"file://{tmp_path / name}")
            pin = (await store.list())["linked.json"]
            assert bytes(await read(store, pin, 0, 5)) == b"12345"
        assert uri

    async def test_a_snapshot_of_the_hub_cache_links_to_its_blobs(self, shelf: Shelf, tmp_path: Path) -> None:
        shelf.folder("models--a--b", {"blobs/0123": b"12345", "refs/main": b"abc"})
        snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        os.symlink("../../blobs/0123", snapshot / "config.json")
        os.symlink("../../refs/main", snapshot / "other.json")
        store = store_at(str(snapshot))
        pins = await store.list()
        assert bytes(await read(store, pins["config.json"], 0, 5)) == b"12345"
        with pytest.raises(AccessDenied, match=r"other\.json: is a link to .*refs/main"):
            await read(store, pins["other.json"], 0, 3)

    async def test_a_link_that_leaves_the_folder_is_not_served(self, shelf: Shelf, tmp_path: Path) -> None:
        shelf.folder("outside", {"secret": b"12345"})
        uri = shelf.folder("inside", {"config.json": b"{}"})
        os.symlink(tmp_path / "outside" / "secret", tmp_path / "inside" / "chat_template.jinja")
        os.symlink(tmp_path / "outside", tmp_path / "inside" / "sub")
        store = store_at(uri)
        for name in ("chat_template.jinja", "sub/secret"):
            pin = await store.pin(name)
            assert pin is not None
            with pytest.raises(AccessDenied, match="outside of the folder"):
                await read(store, pin, 0, 5)


class WebShelf(Shelf):
    def __init__(self, server: RangeServer) -> None:
        self.server = server

    def folder(self, name: str, contents: Mapping[str, bytes]) -> str:
        self.server.files |= {f"{name}/{file}": data for file, data in contents.items()}
        return str(Location.parse(self.server.url).child(name))

    def replace(self, uri: str, name: str, data: bytes) -> None:
        self.server.files[f"{Location.parse(uri).path}/{name}"] = data


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return authority, path


@pytest.fixture(scope="module")
def https_server(authority: tuple[trustme.CA, Path]) -> Iterator[RangeServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority[0].issue_cert("127.0.0.1").configure_cert(context)
    with RangeServer(tls=context) as server:
        yield server


class TestHttps(StoreContract):
    """TLS by a private authority, which SSL_CERT_FILE names."""

    can_list = False

    @pytest.fixture
    def shelf(
        self, https_server: RangeServer, authority: tuple[trustme.CA, Path], monkeypatch: pytest.MonkeyPatch
    ) -> Shelf:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority[1]))
        return WebShelf(https_server)

    async def test_an_authority_that_nobody_trusts(self, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
        uri = shelf.folder("untrusted", files.checkpoint(files.model()))
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(StoreError, match="untrusted"):
            await open_checkpoint_async(uri, retry=RetryPolicy(attempts=2, first_delay=0.01))


@pytest.fixture(scope="module")
def http_server() -> Iterator[RangeServer]:
    with RangeServer() as server:
        yield server


class TestHttp(StoreContract):
    can_list = False

    @pytest.fixture
    def shelf(self, http_server: RangeServer) -> Shelf:
        return WebShelf(http_server)

    async def test_a_shard_that_no_listing_could_have_is_asked_for(self, shelf: Shelf) -> None:
        uri = shelf.folder("sharded", files.checkpoint(files.model(), shards=4))
        assert len((await open_checkpoint_async(uri)).shards) == 4


def test_a_web_server_is_asked_for_every_file_that_serving_reads() -> None:
    assert {*TOKENIZER, *PROCESSOR_FILES} <= set(WELL_KNOWN)


class AzureShelf(Shelf):
    def __init__(self, server: BlobServer) -> None:
        self.server = server

    def folder(self, name: str, contents: Mapping[str, bytes]) -> str:
        self.server.files |= {f"account/models/{name}/{file}": data for file, data in contents.items()}
        return f"az://models/{name}"

    def replace(self, uri: str, name: str, data: bytes) -> None:
        self.server.files[f"account/models/{Location.parse(uri).path}/{name}"] = data


@pytest.fixture(scope="module")
def blob_server() -> Iterator[BlobServer]:
    with BlobServer() as server:
        yield server


class TestAzure(StoreContract):
    """Our own server that speaks the Blob service's calls: Azurite is not on PyPI."""

    @pytest.fixture
    def shelf(self, blob_server: BlobServer, monkeypatch: pytest.MonkeyPatch) -> Shelf:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5a2V5a2V5a2V5")
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{blob_server.url}/account")
        return AzureShelf(blob_server)


async def test_a_container_without_an_account_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(AccessDenied, match=r"az://models/gemma: .*AZURE_STORAGE_ACCOUNT_NAME"):
        await open_checkpoint_async("az://models/gemma")


class S3Shelf(Shelf):
    """Written with plain HTTP: moto wants a signature's form, not its truth."""

    def __init__(self, url: str) -> None:
        self.url = url

    def folder(self, name: str, contents: Mapping[str, bytes]) -> str:
        for file, data in contents.items():
            self._put(f"{name}/{file}", data)
        return f"s3://models/{name}"

    def replace(self, uri: str, name: str, data: bytes) -> None:
        self._put(f"{Location.parse(uri).path}/{name}", data)

    def _put(self, key: str, data: bytes) -> None:
        import obstore
        from obstore.store import S3Store

        obstore.put(S3Store("models", endpoint=self.url, client_options={"allow_http": True}), key, data)


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    log = tmp_path_factory.mktemp("moto") / "log"
    process = spawn([program("moto_server"), "-H", "127.0.0.1", "-p", str(port)], log=log)
    url = f"http://127.0.0.1:{port}"
    try:
        _answers(url, method="PUT", path="/models")
        yield url
    finally:
        stop(process)


class TestS3(StoreContract):
    """moto."""

    @pytest.fixture
    def shelf(self, moto: str, monkeypatch: pytest.MonkeyPatch) -> Shelf:
        _s3_environment(moto, monkeypatch)
        return S3Shelf(moto)

    async def test_a_public_bucket_is_read_without_credentials_and_this_is_said(
        self, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        contents = files.checkpoint(files.model())
        uri = shelf.folder("public", contents)
        for name in contents:
            _make_public(f"{os.environ['AWS_ENDPOINT_URL']}/models/public/{name}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
        monkeypatch.setenv("HOME", "/nonexistent")
        checkpoint = await open_checkpoint_async(uri)
        assert len([landed async for landed in stream(checkpoint)]) == len(files.model())
        assert [record.message for record in caplog.records if "public" in record.message]

    async def test_no_credentials_and_no_public_bucket(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
        monkeypatch.setenv("HOME", "/nonexistent")
        with RangeServer() as server:
            server.answer = lambda handler: handler.reply(403, {}, b"<Error><Code>AccessDenied</Code></Error>")  # type: ignore[method-assign]
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
            says = (
                "no credentials: none in the environment.*AWS_ACCESS_KEY_ID.*without credentials it says.*AccessDenied"
            )
            with pytest.raises(AccessDenied, match=says):
                await open_checkpoint_async("s3://private/gemma")

    async def test_the_keys_of_a_profile_are_found(
        self, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uri = shelf.folder("profile", files.checkpoint(files.model()))
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        keys = tmp_path / "credentials"
        keys.write_text("[dev]\naws_access_key_id = AK\naws_secret_access_key = SK\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
        monkeypatch.setenv("AWS_PROFILE", "dev")
        assert len((await open_checkpoint_async(uri)).tensors) == len(files.model())

    async def test_a_profile_that_is_not_there_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
        monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
        with pytest.raises(AccessDenied, match=r"s3://models/gemma: .*no-such-profile.*could not be found"):
            await open_checkpoint_async("s3://models/gemma")


class TestRclone:
    """`rclone serve s3` answers 200 to ranges: a good bad server."""

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        for name, data in files.checkpoint(files.model(width=64)).items():
            (tmp_path / "models" / "gemma").mkdir(parents=True, exist_ok=True)
            (tmp_path / "models" / "gemma" / name).write_bytes(data)
        port = free_port()
        command = [program("rclone"), "serve", "s3", str(tmp_path), "--addr", f"127.0.0.1:{port}"]
        process = spawn([*command, "--auth-key", "key,secret"], log=tmp_path / "log")
        try:
            _answers(f"http://127.0.0.1:{port}", method="GET", path="/")
            _s3_environment(f"http://127.0.0.1:{port}", monkeypatch)
            yield "s3://models/gemma"
        finally:
            stop(process)

    async def test_a_server_that_ignores_ranges_is_named(self, folder: str) -> None:
        store = open_store(Location.parse(folder))
        pin = (await store.list())["model.safetensors"]
        with pytest.raises(BadResponse, match=r"s3://models/gemma/model\.safetensors.*range"):
            await read(store, pin, 5, 1000)


async def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(LocationError, match="ftp"):
        Location.parse("ftp://host/model")


def _s3_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_REGION", "us-east-1")


def _make_public(url: str) -> None:
    form = "AWS4-HMAC-SHA256 Credential=key/20261129/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none"
    headers = {"x-amz-acl": "public-read", "Authorization": form}
    with urllib.request.urlopen(urllib.request.Request(f"{url}?acl", method="PUT", headers=headers)):
        pass


def _answers(url: str, *, method: str, path: str) -> None:
    """Wait until a server answers anything to a request."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url + path, method=method), timeout=5):
                return
        except urllib.error.HTTPError as error:
            error.close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
