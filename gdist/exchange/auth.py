"""Who speaks, and that nobody changed it: signatures of the messages of one connection.

    host                                                    the one that is called
      GET /hello    Gdist-Exchange: 1 <nonce a>   ────────▶
                    ◀────────   401   WWW-Authenticate: Gdist <nonce b>
      GET /hello    Gdist-Mac                     ────────▶   knows the key, or hears 401 and is dropped
                    ◀────────   200   Gdist-Mac               knows it too: now requests follow
      POST /…       Gdist-Digest   Gdist-Mac      ────────▶
                    ◀────────   200   Gdist-Digest   Gdist-Mac

Both nonces go into a key of this connection. A message is signed (HMAC-SHA-256) over its direction, its place
in the order of the connection, and every byte of its head: method, path, member, status, length, and the
BLAKE3 digest of the body.

Protected, with or without encryption: nobody without the secret can ask, answer, change a byte, or send again
what they overheard, to another path, on another connection or later on the same. Bytes that are sent from
files carry no digest; whoever asked checks them against the torrent's hashes.

Not protected without encryption: anyone on the way reads everything. Not protected at all: connections can be
cut, or held up. Whoever overhears or provokes a signature can try secrets at home, so choose a long one. With
encryption (TLS 1.3) messages are signed the same, inside.

Members trust each other: there is one secret, and whoever has it can speak for any member.
"""

from __future__ import annotations

import hmac
import secrets

from gdist.exchange.key import Key

VERSION = "1"
NONCE_BYTES = 16

REQUEST, ANSWER = b"request", b"answer"

SESSION = b"gdist exchange 1: connection"


def new_nonce() -> str:
    """What each side adds to the key of a connection, as hex."""
    return secrets.token_hex(NONCE_BYTES)


def is_nonce(text: str) -> bool:
    """Whether this is what `new_nonce` gives."""
    return len(text) == 2 * NONCE_BYTES and set(text) <= set("0123456789abcdef")


class Session:
    """Signs and checks the messages of one connection, in turn: a request, its answer, the next request."""

    def __init__(self, key: Key, caller: str, called: str) -> None:
        self._key = hmac.digest(key.signing, SESSION + bytes.fromhex(caller + called), "sha256")
        self._turn = {REQUEST: 0, ANSWER: 0}

    def sign(self, direction: bytes, head: bytes) -> str:
        """The signature of the next message of this direction."""
        turn = self._turn[direction]
        self._turn[direction] += 1
        message = b"%s %d\n%s" % (direction, turn, head)
        return hmac.digest(self._key, message, "sha256").hex()

    def is_signed(self, direction: bytes, head: bytes, signature: str) -> bool:
        """Whether this is the next message of this direction, as the other side sent it."""
        return hmac.compare_digest(self.sign(direction, head).encode(), signature.encode())
