"""Fetching what a request names: only from where it is allowed, only public addresses, within size and time.

The servers are real, with TLS, on this machine. `is_allowed` lets their address pass, and nothing else that is not
public, so that every other check is the one that runs in production.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trustme

from coldstream.demo.bucket import LocalBucket
from coldstream.errors import InvalidRequest
from coldstream.serve.images.addresses import is_house_name, is_public, matches
from coldstream.serve.images.fetch import ImageFetcher
from coldstream.settings import ImageSettings

Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]
LIMIT = 5_000


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@asynccontextmanager
async def https_server(authority: trustme.CA, answer: Answer, host: str = "img.test.example") -> AsyncIterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            await answer(head.decode(), writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


def fetcher(
    authority: trustme.CA, port: int, addresses: dict[str, Sequence[str]], seconds: float = 5.0
) -> ImageFetcher:
    def tls() -> ssl.SSLContext:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        return context

    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses[host]

    hosts = ("img.test.example", f"*.test.example:{port}", f"img.test.example:{port}", "*")
    return ImageFetcher(
        ImageSettings(url_hosts=hosts, max_bytes=LIMIT, fetch_seconds=seconds, buckets=("photos",)),
        resolve=resolve,
        is_allowed=lambda address: address == "127.0.0.1" or is_public(address),
        tls=tls,
    )


HOME = {"img.test.example": ["127.0.0.1"]}


async def plain(head: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    await writer.drain()


async def refused(fetcher: ImageFetcher, url: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        await fetcher.fetch(url, "image")
    assert caught.value.field == "image"
    return str(caught.value)


async def test_an_allowed_host_is_fetched_by_its_checked_address_under_its_own_name(authority: trustme.CA) -> None:
    seen = []

    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        seen.append(head)
        await plain(head, writer)

    async with https_server(authority, answer) as port:
        body = await fetcher(authority, port, HOME).fetch(f"https://img.test.example:{port}/a%20b.png?x=1#y", "image")
    assert body == b"hello"
    assert seen[0].startswith("GET /a%20b.png?x=1 HTTP/1.1\r\n")
    assert f"host: img.test.example:{port}\r\n" in seen[0].lower()
    assert "authorization" not in seen[0].lower()
    assert "cookie" not in seen[0].lower()


async def test_a_name_is_resolved_once_and_the_connection_goes_to_that_address(authority: trustme.CA) -> None:
    """DNS rebinding: the second answer would be the metadata server."""
    answers = [["127.0.0.1"], ["169.254.169.254"]]
    async with https_server(authority, plain) as port:
        base = fetcher(authority, port, {})

        async def resolve(host: str, port: int) -> Sequence[str]:
            return answers.pop(0)

        base._resolve = resolve
        assert await base.fetch(f"https://img.test.example:{port}/a.png", "image") == b"hello"
    assert len(answers) == 1


async def test_a_certificate_for_another_name_is_refused(authority: trustme.CA) -> None:
    async with https_server(authority, plain, host="other.example") as port:
        url = f"https://img.test.example:{port}/a.png"
        assert "img.test.example" in await refused(fetcher(authority, port, HOME), url)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.10",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.9",
        "192.168.1.1",
        "100.64.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "169.254.169.254",
        "192.0.0.192",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:169.254.169.254",
        "::ffff:127.0.0.1",
        "::ffff:a9fe:a9fe",
        "::169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "2001:0:7f00:1:0:0:80ff:fffe",
        "fd00:ec2::254",
        "fc00::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "not an address",
    ],
)
def test_addresses_inside_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["localhost", "metadata.google.internal", "printer.local", "db", "x.internal"])
def test_names_of_the_house_are_known(host: str) -> None:
    assert is_house_name(host)


def test_an_allow_list_matches_names_endings_and_ports() -> None:
    allowed = ("a.example", "*.b.example", "c.example:8443")
    assert matches("a.example", 443, allowed)
    assert matches("x.b.example", 443, allowed)
    assert matches("c.example", 8443, allowed)
    assert not matches("b.example", 443, allowed)
    assert not matches("xb.example", 443, allowed)
    assert not matches("a.example", 8443, allowed)
    assert not matches("c.example", 443, allowed)
    assert not matches("a.example.evil.test", 443, allowed)


@pytest.mark.parametrize("inside", ["10.0.0.1", "169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254"])
async def test_a_host_that_resolves_inside_is_refused(authority: trustme.CA, inside: str) -> None:
    base = fetcher(authority, 443, {"evil.example": ["8.8.8.8", inside]})
    assert "not at a public address" in await refused(base, "https://evil.example/a.png")


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("https://user:pass@img.test.example/a.png", "user name or password"),
        ("https://img.test.example\\@evil.example/a.png", "user name or password"),
        ("https://metadata.google.internal/computeMetadata/v1/", "not among the hosts"),
        ("https://localhost/a.png", "not among the hosts"),
        ("https://img.test.example:22/a.png", "not among the hosts"),
        ("https://2130706433/", "not among the hosts"),
        ("https:///a.png", "plain host"),
        ("https://exämple.test/a.png", "plain host"),
        ("https://[::1/a.png", "not a URL"),
        ("http://img.test.example/a.png", "only https"),
        ("https://img.test.example/" + "a" * 3000, "longer than"),
        ("gs://other/a.png", "bucket 'other'"),
        ("gs://photos/", "gs://photos/folder/image.jpg"),
    ],
)
async def test_urls_that_are_refused_by_their_text(authority: trustme.CA, url: str, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        fetcher(authority, 1, {}).check(url, "image")


@pytest.mark.parametrize(
    "url", ["https://169.254.169.254/latest", "https://[::ffff:169.254.169.254]/", "https://0x7f.1/"]
)
async def test_an_address_in_the_url_is_held_against_the_same_rules(authority: trustme.CA, url: str) -> None:
    """Even where every host is allowed, and through the system's own resolver."""
    open_to_all = ImageFetcher(ImageSettings(url_hosts=("*",)))
    message = await refused(open_to_all, url)
    assert "not at a public address" in message or "not among the hosts" in message


@pytest.mark.parametrize(
    "target",
    [
        "https://169.254.169.254/latest/meta-data",
        "https://metadata.google.internal/",
        "http://img.test.example/plain",
        "https://inside.test.example:{port}/",
        "file:///etc/passwd",
        "//169.254.169.254/x",
    ],
)
async def test_a_redirect_is_checked_like_the_first_url(authority: trustme.CA, target: str) -> None:
    asked = []

    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        asked.append(head)
        writer.write(
            f"HTTP/1.1 302 Found\r\nLocation: {target.format(port=port)}\r\nContent-Length: 0\r\n\r\n".encode()
        )
        await writer.drain()

    names = HOME | {"inside.test.example": ["10.0.0.5"], "169.254.169.254": ["169.254.169.254"]}
    async with https_server(authority, answer) as port:
        message = await refused(fetcher(authority, port, names), f"https://img.test.example:{port}/a.png")
    assert "public" in message or "not among" in message or "only https" in message
    assert len(asked) == 1


async def test_a_redirect_to_an_allowed_place_is_followed(authority: trustme.CA) -> None:
    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        if "/first" in head:
            writer.write(b"HTTP/1.1 307 Moved\r\nLocation: /second\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            await plain(head, writer)

    async with https_server(authority, answer) as port:
        assert await fetcher(authority, port, HOME).fetch(f"https://img.test.example:{port}/first", "image") == b"hello"


async def test_endless_redirects_end(authority: trustme.CA) -> None:
    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    async with https_server(authority, answer) as port:
        url = f"https://img.test.example:{port}/a"
        assert "more than 3 redirects" in await refused(fetcher(authority, port, HOME), url)


async def test_a_declared_size_over_the_limit_is_not_read(authority: trustme.CA) -> None:
    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {LIMIT + 1}\r\n\r\n".encode())
        await writer.drain()

    async with https_server(authority, answer) as port:
        url = f"https://img.test.example:{port}/a"
        assert f"{LIMIT} bytes" in await refused(fetcher(authority, port, HOME), url)


async def test_an_undeclared_size_is_cut_at_the_limit(authority: trustme.CA) -> None:
    sent = 0

    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while sent < 100_000_000:
            writer.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
            sent += 1000
            await writer.drain()

    async with https_server(authority, answer) as port:
        url = f"https://img.test.example:{port}/a"
        assert f"{LIMIT} bytes" in await refused(fetcher(authority, port, HOME), url)
    assert sent < 50_000_000


async def test_a_host_that_drips_is_cut_and_the_loop_is_not_blocked(authority: trustme.CA) -> None:
    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n")
        while True:
            dripping.set()
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    dripping = asyncio.Event()
    async with https_server(authority, answer) as port:
        message = await refused(fetcher(authority, port, HOME, 1.0), f"https://img.test.example:{port}/a")
    assert "within 1 s" in message
    assert dripping.is_set(), "the server is on the same loop"


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        pytest.param(b"404 Not Found\r\nContent-Length: 0\r\n\r\n", "HTTP 404", id="an error status"),
        pytest.param(
            b"200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello", "compressed", id="compressed"
        ),
        pytest.param(b"200 OK\r\nContent-Length: 500\r\n\r\nhello", "could not be read", id="breaks off"),
    ],
)
async def test_an_answer_that_is_no_picture_is_refused_by_name(authority: trustme.CA, reply: bytes, says: str) -> None:
    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 " + reply)
        await writer.drain()

    async with https_server(authority, answer) as port:
        assert says in await refused(fetcher(authority, port, HOME), f"https://img.test.example:{port}/a")


@pytest.fixture(scope="module")
def photos() -> Iterator[LocalBucket]:
    with LocalBucket() as bucket:
        bucket.put("photos", "mugs/red.jpg", b"a photo")
        bucket.put("photos", "mugs/large.jpg", bytes(LIMIT + 1))
        yield bucket


def of_bucket(bucket: LocalBucket) -> ImageFetcher:
    settings = ImageSettings(max_bytes=LIMIT, fetch_seconds=10.0, buckets=("photos",))
    return ImageFetcher(settings, environ=bucket.environment)


async def test_an_object_of_a_bucket_that_is_allowed_is_read(photos: LocalBucket) -> None:
    assert await of_bucket(photos).fetch("gs://photos/mugs/red.jpg", "image") == b"a photo"


@pytest.mark.parametrize(
    ("url", "says"), [("gs://photos/mugs/none.jpg", "there is no object"), ("gs://photos/mugs/large.jpg", "5000")]
)
async def test_an_object_that_cannot_be_had_is_named(photos: LocalBucket, url: str, says: str) -> None:
    assert says in await refused(of_bucket(photos), url)
