"""Addresses of stores, as TensorStore wants them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdist.errors import RequestError
from gdist.kvstore import kvstore_spec, local_path

REGION = {"AWS_DEFAULT_REGION": "eu-west-1"}
MINIO = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}


@pytest.mark.parametrize(
    ("url", "environ", "spec"),
    [
        ("s3://b/p/q", {}, {"driver": "s3", "bucket": "b", "path": "p/q/"}),
        ("s3://b", REGION, {"driver": "s3", "bucket": "b", "path": "", "aws_region": "eu-west-1"}),
        (
            "s3://b/p/",
            MINIO,
            {
                "driver": "s3",
                "bucket": "b",
                "path": "p/",
                "endpoint": "http://127.0.0.1:9000",
                "aws_region": "us-east-1",
            },
        ),
        ("gs://b/p", {}, {"driver": "gcs", "bucket": "b", "path": "p/"}),
        ("https://h:1/p", {}, {"driver": "http", "base_url": "https://h:1", "path": "/p/"}),
        ("memory://a/b", {}, {"driver": "memory", "path": "a/b/"}),
        ("file:///a%20b/c", {}, {"driver": "file", "path": "/a b/c/"}),
        ("/a/b/../c", {}, {"driver": "file", "path": "/a/c/"}),
    ],
)
def test_an_address_is_a_spec(url: str, environ: dict[str, str], spec: dict[str, object]) -> None:
    assert kvstore_spec(url, environ) == spec


@pytest.mark.parametrize("url", ["ftp://h/p", "s3://", "gs:///p", "http:///p", "magnet://x"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(RequestError, match="is not the address of a store"):
        kvstore_spec(url, {})


def test_an_empty_path_is_not_this_directory() -> None:
    for ask in (local_path, kvstore_spec):
        with pytest.raises(RequestError, match="an empty path"):
            ask("")


def test_only_paths_and_file_urls_are_local() -> None:
    assert local_path("a/b") == Path("a/b")
    assert local_path("file:///a") == Path("/a")
    assert local_path("file://elsewhere/a") is None
    assert local_path("s3://b/a") is None
