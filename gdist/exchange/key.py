"""What a job's secret becomes: the key that signs requests, and the certificate that TLS shows.

Every host derives the same from the same secret, so nothing has to be handed out, and a host trusts what it
could have made itself and nothing else.
"""

from __future__ import annotations

import functools
import hashlib
import os
import ssl
from typing import final

from blake3 import blake3

from gdist.errors import RequestError

# Secrets are typed by people. A signature that somebody overheard lets them try one word after the other, so
# each try is made to cost: 32 MiB and about a tenth of a second.
SCRYPT = {"n": 2**15, "r": 8, "p": 1, "maxmem": 64 * 2**20, "dklen": 32}

SALT_CONTEXT = "gdist exchange 1: salt of a job"
SIGN_CONTEXT = "gdist exchange 1: signatures"
TLS_CONTEXT = "gdist exchange 1: key of the certificate"


@final
class Key:
    """The key of one job; see the module."""

    def __init__(self, root: bytes) -> None:
        assert len(root) == 32, len(root)
        self._root = root
        self.signing = blake3(root, derive_key_context=SIGN_CONTEXT).digest()

    @classmethod
    def from_secret(cls, text: str, job: str = "") -> Key:
        """The key that this secret gives for this job; another job has another one.

        Takes about a tenth of a second, so that guessing does too.

        Raises:
            RequestError: when the secret is empty.
        """
        if not text.strip():
            raise RequestError("the secret is empty", hint='for example --secret "$(openssl rand -hex 16)"')
        salt = blake3(job.encode(), derive_key_context=SALT_CONTEXT).digest()
        return cls(hashlib.scrypt(text.strip().encode(), salt=salt, **SCRYPT))

    @classmethod
    def from_hex(cls, text: str) -> Key:
        """The key that `hex` gave.

        Raises:
            RequestError: when it is none.
        """
        try:
            root = bytes.fromhex(text)
        except ValueError as error:
            raise RequestError("this is no key") from error
        if len(root) != 32:
            raise RequestError(f"a key has 32 bytes, not {len(root)}")
        return cls(root)

    def hex(self) -> str:
        """The key as text. Who has it has the cluster."""
        return self._root.hex()

    def __repr__(self) -> str:
        return "Key(…)"

    @functools.cached_property
    def certificate(self) -> bytes:
        """The certificate (DER) that both sides of an encrypted connection show."""
        return ssl.PEM_cert_to_DER_cert(self._pem[1].decode())

    @functools.cached_property
    def server_context(self) -> ssl.SSLContext:
        """TLS 1.3 for the side that is called."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0  # connections are kept; none is resumed
        return context

    @functools.cached_property
    def client_context(self) -> ssl.SSLContext:
        """TLS 1.3 for the side that calls."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, protocol: int) -> ssl.SSLContext:
        private, certificate = self._pem
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # there is one certificate, whatever the host is called
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=certificate.decode())
        # `ssl` reads keys from files only; this one never touches a disk.
        with os.fdopen(os.memfd_create("gdist-key", os.MFD_CLOEXEC), "wb") as file:
            file.write(private + certificate)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
        return context

    @functools.cached_property
    def _pem(self) -> tuple[bytes, bytes]:
        from gdist.exchange.certificate import (
            private_and_certificate,
        )  # plain clusters need no library for it

        return private_and_certificate(blake3(self._root, derive_key_context=TLS_CONTEXT).digest())
