"""Addresses of stores as TensorStore key-value store specs, and the one context they are opened in.

    s3://bucket/path    gs://bucket/path    http(s)://host/path    file:///path    memory://path    /path

Reader and writer of a bucket come through here, so both mean the same thing by an address.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from gdist.errors import RequestError

SCHEMES = ("s3", "gs", "http", "https", "file", "memory")
RETRIES = 6  # waits double from 1 s: about a minute; TensorStore's own 32 would be a quarter of an hour
CACHE_BYTES = 64 * 2**20  # shard indexes are read once, not once a chunk; chunks of 16 MiB pass through


def is_url(address: str) -> bool:
    """True for `scheme://...`; everything else is a path."""
    return "://" in address


def local_path(address: str | os.PathLike[str]) -> Path | None:
    """The directory an address names on this machine, `file://` included; None when it is elsewhere.

    Raises:
        RequestError: it is empty, as an unset variable is; Python would take it for the current directory.
    """
    text = os.fspath(address)
    if not text:
        raise RequestError("an empty path names no store", hint="give a directory or a URL")
    if not is_url(text):
        return Path(text)
    scheme, host, path = _split(text)
    return Path(unquote(path)) if scheme == "file" and host in ("", "localhost") else None


def check_utf8(path: str | os.PathLike[str], why: str) -> None:
    """That a path is text; `why` says what cannot be done with another.

    Raises:
        RequestError: it has a name that is not UTF-8.
    """
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{os.fspath(path)!r} has a name that is not UTF-8, {why}",
            hint="give it another name",
        ) from error


def _split(url: str) -> tuple[str, str, str]:
    """Scheme, bucket or host, and path; `?` and `#` are letters of a key here."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return scheme.lower(), host, slash + path


def kvstore_spec(
    address: str | os.PathLike[str], environ: Mapping[str, str] | None = None
) -> dict[str, object]:
    """The TensorStore key-value store spec of a store's root; its `path` ends with `/` or is empty.

    S3 honours `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` (a server that is not Amazon's) and `AWS_REGION`,
    `AWS_DEFAULT_REGION`; credentials are TensorStore's own business.

    Raises:
        RequestError: when the scheme is not one of `SCHEMES`, or a bucket or host is missing.
    """
    path = local_path(address)
    if path is not None:
        return {"driver": "file", "path": f"{os.path.abspath(path)}/"}
    url = os.fspath(address)
    scheme, host, inside = _split(url)
    if scheme not in SCHEMES or scheme == "file" or not (host or scheme == "memory"):
        raise RequestError(
            f"{url!r} is not the address of a store",
            hint=f"give a directory, or a URL that starts with {', '.join(f'{s}://' for s in SCHEMES)}",
        )
    inside = inside.strip("/")
    inside = f"{inside}/" if inside else ""
    match scheme:
        case "s3":
            return {
                "driver": "s3",
                "bucket": host,
                "path": inside,
                **_s3_options(os.environ if environ is None else environ),
            }
        case "gs":
            return {"driver": "gcs", "bucket": host, "path": inside}
        case "memory":
            return {"driver": "memory", "path": f"{host}/{inside}" if host else inside}
        case _:
            return {"driver": "http", "base_url": f"{scheme}://{host}", "path": f"/{inside}"}


def _s3_options(environ: Mapping[str, str]) -> dict[str, object]:
    options: dict[str, object] = {}
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        options["endpoint"] = endpoint
        region = region or "us-east-1"  # else TensorStore asks the server, which most others do not answer
    if region:
        options["aws_region"] = region
    return options


@cache
def shared_context() -> Any:  # Any: TensorStore ships no types
    """The context of every store gdist opens; one, because what `memory://` holds lives in it."""
    import tensorstore as ts

    retries = {f"{kind}_request_retries": {"max_retries": RETRIES} for kind in ("http", "s3", "gcs")}
    return ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}, **retries})
