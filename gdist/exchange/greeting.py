"""How a connection begins: encrypted or not, and each side shows the other that it knows the secret.

The drawing is in `auth`. Until it is done, the side that is called answers 401 to everything and reads no
body.
"""

from __future__ import annotations

import json
import socket
import ssl
import time

from gdist.core.text import printable
from gdist.errors import RefusedError, TransferError, Unreachable
from gdist.exchange.auth import ANSWER, REQUEST, VERSION, Session, is_nonce, new_nonce
from gdist.exchange.channel import Channel, Closed
from gdist.exchange.heads import MAC, Head, make_head, parse_head, sealed
from gdist.exchange.key import Key

HELLO = "/hello"
TLS_HANDSHAKE = b"\x16"  # first byte of TLS (RFC 8446, 5.1), and of no HTTP request
REFUSAL_BYTES = 4096  # of a refusal's text; more is not read

NOT_SIGNED = "an agent of gdist: what it is asked has to be signed with the job's secret"
OTHER_SECRET = "this host was given another secret, or works on another job"
OTHER_VERSION = "this host speaks another version of the exchange: run the same gdist everywhere"
ENCRYPTED_HERE = "this host encrypts (--encrypt), and was called without"
PLAIN_HERE = "this host does not encrypt, and was called with --encrypt"
SAME_EVERYWHERE = "give all hosts the same --secret and the same source, and --encrypt to all or to none"


class Unwelcome(Exception):
    """Ends a connection that does not show that it knows the secret; says why."""


def greet_caller(channel: Channel, key: Key, *, encrypt: bool, deadline: float) -> Session:
    """On the side that is called; `deadline` is a time of `time.monotonic`.

    Raises:
        Unwelcome: to be answered by `refusal`.
        OSError: the caller went away, did not finish in time, or has another certificate.
    """
    channel.sock.settimeout(_left(deadline))
    first = channel.sock.recv(1, socket.MSG_PEEK)
    if not first:
        raise Closed("left without a word")
    if (first == TLS_HANDSHAKE) != encrypt:
        raise Unwelcome(ENCRYPTED_HERE if encrypt else PLAIN_HERE)
    if encrypt:
        shown = channel.encrypt(key.server_context, _left(deadline), called=True)
        if shown != key.certificate:
            raise ssl.SSLError("the caller shows another certificate")
    hello = _hello(channel, deadline)
    if "gdist-exchange" not in hello.fields or hello.signed:
        raise Unwelcome(NOT_SIGNED)
    version, _, theirs = hello.fields["gdist-exchange"].partition(" ")
    if version != VERSION or not is_nonce(theirs):
        raise Unwelcome(OTHER_VERSION)
    ours = new_nonce()
    channel.send((refusal(NOT_SIGNED, f"Gdist {ours}"),))
    session = Session(key, theirs, ours)
    proof = _hello(channel, deadline)
    if not proof.signed:
        raise Unwelcome(NOT_SIGNED)
    if not session.is_signed(REQUEST, proof.signed, proof.fields[MAC]):
        raise Unwelcome(OTHER_SECRET)
    welcome = make_head("HTTP/1.1 200 OK", {"Content-Length": "0"})
    channel.send((sealed(welcome, session.sign(ANSWER, welcome)),))
    return session


def _hello(channel: Channel, deadline: float) -> Head:
    raw = channel.read_head(_left(deadline), _left(deadline))
    if not raw:
        raise Closed("left without a word")
    try:
        head = parse_head(raw)
        bare = head.words[:2] == ("GET", HELLO) and not head.length
    except ValueError as error:
        raise Unwelcome(NOT_SIGNED) from error
    if not bare:
        raise Unwelcome(NOT_SIGNED)
    return head


def refusal(message: str, challenge: str = "Gdist") -> bytes:
    """The one answer that is not signed: 401."""
    body = json.dumps({"error": message, "hint": SAME_EVERYWHERE}).encode()
    fields = {
        "WWW-Authenticate": challenge,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    return make_head("HTTP/1.1 401 Unauthorized", fields) + b"\r\n" + body


def greet_called(channel: Channel, key: Key, *, host: str, encrypt: bool, deadline: float) -> Session:
    """On the side that calls; `host` is the address that it called.

    Raises:
        RefusedError: another secret, another version, or only one side encrypts.
        Unreachable: something else than gdist answers.
        OSError: the other side went away, or did not answer in time.
    """
    if encrypt:
        _encrypt(channel, key, host, deadline)
    ours = new_nonce()
    hello = make_head(f"GET {HELLO} HTTP/1.1", {"Host": host, "Gdist-Exchange": f"{VERSION} {ours}"})
    channel.send((hello + b"\r\n",))
    head = _answer(channel, host, deadline)
    challenge = head.fields.get("www-authenticate", "")
    text = _text(channel, head)
    if head.words[1] != "401" or not challenge.startswith("Gdist"):
        raise Unreachable(f"something else than gdist answers at {host}", host=host)
    theirs = challenge.removeprefix("Gdist").strip()
    if not is_nonce(theirs):
        raise refused(host, text)
    session = Session(key, ours, theirs)
    proof = make_head(f"GET {HELLO} HTTP/1.1", {"Host": host})
    channel.send((sealed(proof, session.sign(REQUEST, proof)),))
    welcome = _answer(channel, host, deadline)
    check_answer(channel, session, welcome, host)
    return session


def check_answer(channel: Channel, session: Session, head: Head, host: str) -> None:
    """Whether the head of an answer is what the other side signed.

    Raises:
        RefusedError: it says that it does not believe us.
        TransferError: somebody changed it on the way.
    """
    if not head.signed and head.words[1] == "401":
        raise refused(host, _text(channel, head))
    if not head.signed or not session.is_signed(ANSWER, head.signed, head.fields[MAC]):
        raise TransferError(f"the answer of {host} was changed on the way", host=host)


def refused(host: str, text: bytes) -> RefusedError:
    """What a 401 says."""
    try:
        said = printable(str(json.loads(text)["error"]))
    except (ValueError, LookupError, TypeError):
        said = "it asks for another signature"
    return RefusedError(f"{host}: {said}", hint=SAME_EVERYWHERE, host=host)


def _encrypt(channel: Channel, key: Key, host: str, deadline: float) -> None:
    try:
        shown = channel.encrypt(key.client_context, _left(deadline), called=False)
    except ssl.SSLCertVerificationError as error:
        raise RefusedError(f"{host}: {OTHER_SECRET}", hint=SAME_EVERYWHERE, host=host) from error
    except ssl.SSLEOFError:
        raise  # it went away
    except ssl.SSLError as error:
        raise RefusedError(f"{host}: {PLAIN_HERE}", hint=SAME_EVERYWHERE, host=host) from error
    if shown != key.certificate:
        raise RefusedError(f"{host}: {OTHER_SECRET}", hint=SAME_EVERYWHERE, host=host)


def _answer(channel: Channel, host: str, deadline: float) -> Head:
    raw = channel.read_head(_left(deadline), _left(deadline))
    if not raw:
        raise Closed("it hung up at once: we are not on its list of hosts, or too many called")
    try:
        return parse_head(raw)
    except ValueError as error:
        raise Unreachable(f"something else than gdist answers at {host}", host=host) from error


def _text(channel: Channel, head: Head) -> bytes:
    """The body of an answer that is not signed, as far as it is worth reading."""
    text = bytearray(min(head.length, REFUSAL_BYTES))
    channel.read_into(memoryview(text))
    return bytes(text)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the greeting takes too long")
    return left
