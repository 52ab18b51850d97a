"""What hosts say to each other, as values; and heads of HTTP/1.1 messages, as bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from gdist.errors import GdistError, Gone, RefusedError, RequestError, TransferError

Buffer = bytes | bytearray | memoryview

MAC = "gdist-mac"
HEAD_BYTES = 16 * 2**10  # a head longer than this is nobody of ours
END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class FileRun:
    """Bytes `[offset, offset + length)` of a file: a path, or an open descriptor that stays the caller's."""

    file: str | int
    offset: int
    length: int

    def __post_init__(self) -> None:
        assert self.offset >= 0 and self.length >= 0, self


@dataclass(frozen=True, slots=True)
class FileExtents:
    """A body that lies in files, end to end. It goes out without passing through Python, and without a digest."""

    runs: tuple[FileRun, ...]

    @property
    def nbytes(self) -> int:
        """Length of the body."""
        return sum(run.length for run in self.runs)


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Request:
    """What a member asks. `peer` is its IP address; `member` the index it gave itself, if any.

    `gone()` is true once nobody waits for the answer any more: the peer hung up, or this server closes. A handler
    that blocks asks now and then, at least every half a second.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    peer: str = ""
    member: int | None = None
    gone: Callable[[], bool] = _never

    def json(self) -> Any:  # Any: as `json.loads`
        """The body as JSON.

        Raises:
            RequestError: when it is none.
        """
        return _parse_json(self.body)


@dataclass(frozen=True, slots=True)
class Response:
    """What a handler answers.

    Memory goes with its BLAKE3 digest, several buffers (C-contiguous) end to end. `done` is called once the body has
    gone out, or failed to: its memory or files may then be used for something else.
    """

    status: int = 200
    body: Buffer | Sequence[memoryview] | FileExtents = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    done: Callable[[], None] | None = None

    @classmethod
    def json(cls, value: object, status: int = 200) -> Response:
        """A JSON document."""
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        return cls(status, text.encode(), {"Content-Type": "application/json"})

    @classmethod
    def error(cls, status: int, message: str, hint: str = "") -> Response:
        """A refusal, for the other side to show."""
        return cls.json({"error": message, "hint": hint}, status)


Handler = Callable[[Request], Response]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: `nbytes` of body, in `body` or where the caller wanted them. Names of headers are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    nbytes: int

    def json(self) -> Any:  # Any: as `json.loads`
        """The body as JSON.

        Raises:
            RequestError: when it is none.
        """
        return _parse_json(self.body)

    def raise_for_status(self, who: str) -> None:
        """Raises what a refusal means; `who` is the host that answered.

        Raises:
            RefusedError: 401, 403, 409: another plan or secret.
            Gone: 404, 410.
            TransferError: any other status from 300 on.
        """
        if self.status < 300:
            return
        try:
            said = json.loads(self.body)
            message, hint = str(said["error"]), str(said.get("hint", ""))
        except (ValueError, LookupError, TypeError, AttributeError):
            message, hint = f"{self.status} {self.body[:200].decode(errors='replace')}".strip(), ""
        kind: type[GdistError] = TransferError
        if self.status in (401, 403, 409):
            kind = RefusedError
        elif self.status in (404, 410):
            kind = Gone
        raise kind(f"{who}: {message}", hint=hint, host=who, status=self.status, said=message)


def response_of(error: GdistError) -> Response:
    """The answer that makes the same family of error on the other side."""
    match error:
        case RefusedError():
            status = HTTPStatus.CONFLICT
        case Gone():
            status = HTTPStatus.GONE
        case RequestError():
            status = HTTPStatus.BAD_REQUEST
        case TransferError():
            status = HTTPStatus.SERVICE_UNAVAILABLE
        case _:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
    return Response.error(status, error.message, error.hint)


def _parse_json(body: bytes) -> Any:  # Any: as `json.loads`
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError("the body is not JSON") from error


@dataclass(frozen=True, slots=True)
class Head:
    """A head as it came: the words of its first line, its fields by lower case name, and what the signature covers."""

    words: tuple[str, str, str]
    fields: Mapping[str, str]
    signed: bytes

    @property
    def length(self) -> int:
        """Bytes of body that follow.

        Raises:
            ValueError: when the head does not say it plainly.
        """
        text = self.fields.get("content-length", "0")
        if "transfer-encoding" in self.fields or not (text.isascii() and text.isdigit() and len(text) < 18):
            raise ValueError(f"no plain length: {text!r}")
        return int(text)


def parse_head(raw: bytes) -> Head:
    """The head of a message, `raw` ending with its empty line.

    Strict, because what two readers read differently can be signed by one and believed by the other: a field has
    one line and occurs once, and the signature is the last.

    Raises:
        ValueError: when it is not such a head.
    """
    first, *lines = raw.removesuffix(END).decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) != 3 or not all(words[:2]):
        raise ValueError(f"no first line: {first[:80]!r}")
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not name or name in fields or not name.replace("-", "").isalnum() or MAC in fields:
            raise ValueError(f"no field: {line[:80]!r}")
        fields[name] = value.strip()
    signed = raw[: raw.rindex(b"\r\n", 0, -4) + 2] if MAC in fields else b""
    return Head((words[0], words[1], words[2]), fields, signed)


def make_head(first: str, fields: Mapping[str, str]) -> bytes:
    """A head without signature and without the empty line that ends it.

    Raises:
        ValueError: when a field would not stay one.
    """
    for name, value in fields.items():
        if not name.replace("-", "").isalnum() or any(c in value for c in "\r\n\0"):
            raise ValueError(f"{name!r}: {value!r} is no field")
    return "".join((first, "\r\n", *(f"{name}: {value}\r\n" for name, value in fields.items()))).encode(
        "latin-1"
    )


def sealed(head: bytes, signature: str) -> bytes:
    """A head with its signature, complete."""
    return b"%sGdist-Mac: %s%s" % (head, signature.encode(), END)
