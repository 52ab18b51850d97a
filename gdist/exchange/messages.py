"""What hosts say to each other, as values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from gdist.errors import GdistError, Gone, RefusedError, RequestError, TransferError
from gdist.exchange.heads import OURS, make_head

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class FileRun:
    """Bytes `[offset, offset + length)` of a file: a path, or an open descriptor that stays the caller's."""

    file: str | int
    offset: int
    length: int

    def __post_init__(self) -> None:
        assert self.offset >= 0, self
        assert self.length >= 0, self


@dataclass(frozen=True, slots=True)
class FileExtents:
    """A body that lies in files, end to end. It goes out past Python, and without a digest."""

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

    `gone()` is true once nobody waits for the answer any more: the peer hung up, or this server closes. A
    handler that blocks asks now and then, at least every half a second.
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

    Memory goes with its BLAKE3 digest, several buffers (C-contiguous) end to end. `done` is called once the
    body has gone out, or failed to: its memory or files may then be used for something else.
    """

    status: int = 200
    body: Buffer | Sequence[memoryview] | FileExtents = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    done: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        HTTPStatus(self.status)
        make_head("HTTP/1.1", self.headers)
        assert not {name.lower() for name in self.headers} & OURS, self.headers

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
    """What came back: `nbytes` of body, in `body` or where the caller wanted them.

    Names of headers are lower case.
    """

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
