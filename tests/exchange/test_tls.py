"""With --encrypt both sides show the job's certificate, and trust no other."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gdist.errors import RefusedError, Unreachable
from gdist.exchange import Client, Key, Request, Response, Server
from gdist.exchange.certificate import private_and_certificate

GRACE_SECONDS = 10.0

Serve = Callable[..., Server]
Call = Callable[..., Client]


def here(request: Request) -> Response:
    return Response(body=b"here")


def trusting_anyone() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def said_to(server: Server, context: ssl.SSLContext) -> bytes:
    """What a server says to a greeting in this TLS."""
    with socket.create_connection(("127.0.0.1", server.port), GRACE_SECONDS) as plain:
        try:
            with context.wrap_socket(plain) as sock:
                sock.sendall(b"GET /hello HTTP/1.1\r\nGdist-Exchange: 1 " + b"0" * 32 + b"\r\n\r\n")
                return sock.recv(65536)
        except (ssl.SSLError, ConnectionError):  # as a refusal of TLS 1.3 comes after the handshake
            return b""


def test_what_is_on_the_wire_shows_nothing(serve: Serve, call: Call, encrypt: bool) -> None:
    seen = bytearray()
    server = serve(here, encrypt=encrypt)
    relay = socket.create_server(("127.0.0.1", 0))
    client = call(int(relay.getsockname()[1]), encrypt=encrypt)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                seen.extend(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    def pass_on() -> None:
        near, _ = relay.accept()
        with near, socket.create_connection(("127.0.0.1", server.port)) as far:
            back = threading.Thread(target=pump, args=(far, near))
            back.start()
            pump(near, far)
            back.join()

    thread = threading.Thread(target=pass_on)
    thread.start()
    with relay:
        assert client.request("POST", "/path-of-ours", b"body of ours").body == b"here"
        client.close()
        thread.join()
    for words in (b"/path-of-ours", b"body of ours", b"here", b"Gdist-Mac"):
        assert (words in seen) is not encrypt


@pytest.mark.parametrize("server_encrypts", [True, False])
def test_both_encrypt_or_none(serve: Serve, call: Call, server_encrypts: bool) -> None:
    server = serve(here, encrypt=server_encrypts)
    words = "encrypts (--encrypt), and was called without" if server_encrypts else "does not encrypt"
    with pytest.raises(RefusedError) as caught:
        call(server, encrypt=not server_encrypts).request("POST", "/", bytes(1000))
    assert words in caught.value.message
    assert "--encrypt to all or to none" in caught.value.hint
    assert call(server, encrypt=server_encrypts).request("GET", "/").body == b"here"


def test_who_shows_no_certificate_is_not_heard(serve: Serve) -> None:
    assert said_to(serve(here, encrypt=True), trusting_anyone()) == b""


def test_who_shows_another_certificate_is_not_heard(serve: Serve, key: Key, tmp_path: Path) -> None:
    server = serve(here, encrypt=True)
    for seed, heard in ((b"another".ljust(32), False), (None, True)):
        context = trusting_anyone()
        if seed:
            (tmp_path / "pem").write_bytes(b"".join(private_and_certificate(seed)))
            context.load_cert_chain(tmp_path / "pem")
        else:
            context = key.client_context
        assert (b"401" in said_to(server, context)) is heard


def signed_by(key: Key) -> bytes:
    """Another certificate, with its private key, that the job's certificate vouches for."""
    private, certificate = key._pem
    issuer = x509.load_pem_x509_certificate(certificate)
    own = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "another")])
    signer = serialization.load_pem_private_key(private, None)
    assert isinstance(signer, Ed25519PrivateKey)
    leaf = (
        x509.CertificateBuilder(issuer.subject, name, own.public_key(), 2)
        .not_valid_before(issuer.not_valid_before_utc)
        .not_valid_after(issuer.not_valid_after_utc)
        .sign(signer, None)
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return own.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + leaf.public_bytes(pem)


@pytest.mark.parametrize("changed", ["server_context", "client_context"])
def test_the_certificate_itself_is_trusted_and_none_that_it_signed(
    call: Call, key: Key, changed: str, tmp_path: Path
) -> None:
    (tmp_path / "pem").write_bytes(signed_by(key))
    keys = {"server_context": Key.from_hex(key.hex()), "client_context": Key.from_hex(key.hex())}
    getattr(keys[changed], changed).load_cert_chain(tmp_path / "pem")
    asked: list[Request] = []

    def handler(request: Request) -> Response:
        asked.append(request)
        return Response()

    with Server("127.0.0.1:0", keys["server_context"], handler=handler, encrypt=True) as server:
        client = call(server, key=keys["client_context"], encrypt=True)
        with pytest.raises((RefusedError, Unreachable)):
            client.request("POST", "/", b"mine")
    assert asked == []


def test_older_tls_is_not_spoken(serve: Serve) -> None:
    context = trusting_anyone()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert said_to(serve(here, encrypt=True), context) == b""


def test_a_server_with_another_certificate_is_not_spoken_to(serve: Serve, call: Call, other_key: Key) -> None:
    asked: list[Request] = []
    server = serve(lambda request: asked.append(request) or Response(), encrypt=True)
    with pytest.raises(RefusedError, match="another secret"):
        call(server, key=other_key, encrypt=True).request("POST", "/", b"mine")
    assert asked == []
    assert server.meter.received == 0  # of what is inside TLS
