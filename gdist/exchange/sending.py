"""Responses on their way out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from http import HTTPStatus

from blake3 import blake3

from gdist.errors import Gone
from gdist.exchange.auth import ANSWER, Session
from gdist.exchange.channel import Channel, batches, bytes_of
from gdist.exchange.heads import make_head, sealed
from gdist.exchange.messages import FileExtents, FileRun, Response, response_of

HASH_BYTES = 2**20  # hashed together where buffers are short: BLAKE3 is fast on many kilobytes at once
SHORT_BYTES = 8 * 2**10


def send_response(session: Session, channel: Channel, response: Response) -> None:
    """Sends a response of memory or of files, signed.

    Raises:
        OSError: when it did not get through whole.
    """
    try:
        body = response.body
        if not isinstance(body, FileExtents):
            _send_memory(session, channel, response)
            return
        with contextlib.ExitStack() as opened:
            try:
                runs = _opened(body.runs, opened)
            except OSError as error:
                gone = Gone(f"cannot read it any more: {error.strerror or error}")
                _send_memory(session, channel, response_of(gone))
                return
            head = _signed(session, response, body.nbytes, None)
            channel.send_files(head, runs)
    finally:
        if response.done:
            response.done()


def _send_memory(session: Session, channel: Channel, response: Response) -> None:
    assert not isinstance(response.body, FileExtents)
    body = response.body
    buffers = (body,) if isinstance(body, bytes | bytearray | memoryview) else body
    parts = tuple(bytes_of(buffer) for buffer in buffers)
    hasher = blake3()
    for batch, size in batches(parts, HASH_BYTES):
        for block in (b"".join(batch),) if size < len(batch) * SHORT_BYTES else batch:
            hasher.update(block)
    nbytes = sum(map(len, parts))
    head = _signed(session, response, nbytes, hasher.hexdigest() if nbytes else None)
    channel.send((head, *parts))


def _signed(session: Session, response: Response, nbytes: int, digest: str | None) -> bytes:
    status = HTTPStatus(response.status)
    fields = {"Content-Length": str(nbytes), **response.headers}
    if digest:
        fields["Gdist-Digest"] = digest
    head = make_head(f"HTTP/1.1 {status.value} {status.phrase}", fields)
    return sealed(head, session.sign(ANSWER, head))


def _opened(runs: Iterable[FileRun], stack: contextlib.ExitStack) -> tuple[FileRun, ...]:
    """The runs by descriptors of files that hold all of them; each path is opened once."""
    files: dict[str, int] = {}
    opened = []
    for run in runs:
        file = run.file
        if isinstance(file, str):
            if file not in files:
                files[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, files[file])
            file = files[file]
        size = os.fstat(file).st_size
        if size < run.offset + run.length:
            raise OSError(f"the file ends at {size}")
        opened.append(FileRun(file, run.offset, run.length))
    return tuple(opened)
