"""A secret becomes one key, everywhere the same and nowhere shown."""

from __future__ import annotations

import ssl
import subprocess
import sys

import pytest
from cryptography import x509

from gdist.errors import RequestError
from gdist.exchange import Key


def test_a_secret_and_a_job_make_one_key() -> None:
    key = Key.from_secret("correct horse", "job")
    assert key.hex() == Key.from_secret(" correct horse\n", "job").hex()  # as a file holds it
    assert key.hex() != Key.from_secret("correct horse", "another job").hex()
    assert key.hex() != Key.from_secret("battery staple", "job").hex()


def test_the_key_of_a_secret_never_changes() -> None:
    """Hosts may run different builds of gdist: this value is part of the protocol."""
    assert (
        Key.from_secret("secret", "job").hex()
        == "3ac41345ed8cdbd0b15f2b6f4f380f69247df1a0deecd2336b4ddf0f1c4f62f5"
    )


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_secret_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="secret is empty"):
        Key.from_secret(text)


def test_a_key_goes_through_hex(key: Key) -> None:
    again = Key.from_hex(key.hex())
    assert again.signing == key.signing
    assert again.certificate == key.certificate


@pytest.mark.parametrize("text", ["", "zz", "00" * 31])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="key"):
        Key.from_hex(text)


def test_a_key_does_not_show_itself(key: Key) -> None:
    assert key.hex() not in repr(key)
    assert str(key) == "Key(…)"


def test_every_host_makes_the_same_certificate(key: Key) -> None:
    assert Key.from_hex(key.hex()).certificate == key.certificate
    assert Key(bytes(32)).certificate != key.certificate


def test_no_clock_is_too_wrong_for_the_certificate(key: Key) -> None:
    certificate = x509.load_der_x509_certificate(key.certificate)
    assert certificate.not_valid_before_utc.timestamp() == 0
    assert certificate.not_valid_after_utc.year == 9999


def test_only_tls_1_3_with_a_certificate_is_spoken(key: Key) -> None:
    for context in (key.server_context, key.client_context):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.get_ca_certs(binary_form=True) == [key.certificate]


def test_a_plain_cluster_needs_no_library_for_keys() -> None:
    script = "import sys, gdist.exchange as e; e.Key.from_secret('a'); print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
