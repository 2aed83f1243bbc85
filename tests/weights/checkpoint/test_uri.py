"""Text -> Location."""

from __future__ import annotations

import os

import pytest

from coldstream.errors import LocationError
from coldstream.weights.checkpoint.uri import Location


@pytest.mark.parametrize(
    ("text", "scheme", "bucket", "path"),
    [
        ("gs://bucket/a/b", "gs", "bucket", "a/b"),
        ("gs://bucket/a/b/", "gs", "bucket", "a/b"),
        ("gs://bucket", "gs", "bucket", ""),
        ("s3://bucket/a b/c", "s3", "bucket", "a b/c"),
        ("az://container/a", "az", "container", "a"),
        ("https://host:8443/a%20b/c", "https", "host:8443", "a b/c"),
        ("http://[::1]:80/a", "http", "[::1]:80", "a"),
        ("file:///models/gemma", "file", "", "/models/gemma"),
        ("/models/gemma/", "file", "", "/models/gemma"),
        ("gs://bucket/gemma-3-한국어", "gs", "bucket", "gemma-3-한국어"),
    ],
)
def test_a_uri_has_a_scheme_a_bucket_and_a_path(text: str, scheme: str, bucket: str, path: str) -> None:
    location = Location.parse(text)
    assert (location.scheme, location.bucket, location.path) == (scheme, bucket, path)
    assert Location.parse(str(location)) == location


def test_a_plain_path_is_relative_to_the_current_folder() -> None:
    assert Location.parse("models/gemma").path == os.path.join(os.getcwd(), "models/gemma")


def test_a_child_lies_in_the_folder() -> None:
    assert str(Location.parse("gs://bucket/a").child("config.json")) == "gs://bucket/a/config.json"
    assert str(Location.parse("gs://bucket").child("config.json")) == "gs://bucket/config.json"
    assert str(Location.parse("/a").child("b c")) == "file:///a/b c"


@pytest.mark.parametrize("text", ["gs:/b/m", "gs:b/m", "https:/host/m", "file:/models"])
def test_a_slash_too_few_is_named(text: str) -> None:
    with pytest.raises(LocationError, match="two slashes"):
        Location.parse(text)


@pytest.mark.parametrize("text", ["gs://b//m", "s3://b/m//", "az://c/a//b", "gs://b//"])
def test_a_slash_too_many_is_named(text: str) -> None:
    with pytest.raises(LocationError, match="a slash too many; write"):
        Location.parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "  ", "ftp://host/a", "gs://", "gs:///a", "https:///a", "file://host/a", "https://h/a?token=1", "https://h/#x",
     "https://h:port/", "https://user:secret@h/a", "a\0b"],
)  # fmt: skip
def test_what_is_no_location_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(LocationError) as error:
        Location.parse(text)
    assert "secret" not in str(error.value)
