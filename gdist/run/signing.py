"""Signatures of source manifests: Ed25519 over the exact bytes, in a file of 64 bytes beside the manifest.

    model.json        names the torrent by its info-hash, and with it every byte
    model.json.sig    signs model.json

Keys are PEM files as OpenSSL writes them, and OpenSSL checks what is signed here:

    openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in model.json -sigfile model.json.sig

There is no date in a signature and no chain of keys: who trusts a key trusts all it ever signed.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from gdist.errors import CorruptError, RequestError, translate

SUFFIX = ".sig"
SIGNATURE_BYTES = 64  # RFC 8032
MAX_KEY_BYTES = 1 << 16  # a PEM file of any key is a few kilobytes
_NEW = "make a key with gdist publish --new-key FILE, or openssl genpkey -algorithm ed25519"


def new_key(path: Path) -> str:
    """Writes a new private key, readable by its owner alone, into a file that does not exist; the public key.

    Raises:
        RequestError: the file exists.
        FilesystemError: it cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
    except FileExistsError as error:
        raise RequestError(f"{path} exists", hint="a key is never replaced: give another name") from error
    except OSError as error:
        raise translate(error, f"writing {path}") from error
    return _hex(key.public_key())


def read_private_key(path: Path) -> tuple[Ed25519PrivateKey, str]:
    """A private key from its PEM file, and a warning where others may read that file, or nothing.

    Raises:
        RequestError: it is no Ed25519 private key, or has a passphrase.
    """
    data = _read(path)
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:  # what the library says of a passphrase
        raise RequestError(f"the key {path} has a passphrase", hint="give a key without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        what = "is a public key" if b"PUBLIC KEY" in data else "is no private key in PEM"
        raise RequestError(f"{path} {what}", hint=_NEW) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RequestError(f"{path} is a key of another kind than Ed25519", hint=_NEW)
    shared = path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return key, f"others may read the private key {path}: chmod 600 {path}" if shared else ""


def read_public_key(given: str) -> Ed25519PublicKey:
    """A public key: 64 hex digits, or a PEM file.

    Raises:
        RequestError: it is neither.
    """
    if re.fullmatch(r"[0-9a-fA-F]{64}", given.strip()):
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(given))
    data = _read(Path(given))
    if b"PRIVATE KEY" in data:
        raise RequestError(f"{given} is a private key", hint="give the public one; keep this where it is")
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RequestError(
            f"{given} is no public key in PEM", hint="or give the key itself, 64 hex digits"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise RequestError(f"{given} is a key of another kind than Ed25519", hint=_NEW)
    return key


def sign(key: Ed25519PrivateKey, manifest: bytes) -> tuple[bytes, str]:
    """The signature of a manifest's bytes, and the public key as hex digits."""
    return key.sign(manifest), _hex(key.public_key())


def check_signature(key: Ed25519PublicKey, manifest: bytes, signature: bytes, where: str) -> None:
    """That `manifest`, read from `where`, is what the key's owner signed.

    Raises:
        CorruptError: it is not.
    """
    if len(signature) != SIGNATURE_BYTES:
        raise CorruptError(
            f"{where}{SUFFIX} has {len(signature)} bytes, a signature has {SIGNATURE_BYTES}",
            hint="get the signature again",
        )
    try:
        key.verify(signature, manifest)
    except InvalidSignature as error:
        raise CorruptError(
            f"{where} is not what the owner of key {_hex(key)} signed",
            hint="the manifest or its signature was altered, or another key made it; nothing was fetched",
        ) from error


def _hex(key: Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise RequestError(
            f"the key {str(path)[:200]!r} cannot be read: {error.strerror or error}", hint=_NEW
        ) from error
