"""Magnet links: round trips, and the broken links that circulate."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.magnet import InfoHash, Magnet, format_magnet, parse_magnet, parse_peer
from gdist.errors import RequestError

V1 = "5f96d43576e3d386c9ba65b883210a393b68210e"
V2 = "caf1e1c30e81cb361b9ee167c4aa64228a7fa4fa9f6105232b28ad099f3a302e"
V1_HASH = InfoHash(v1=bytes.fromhex(V1))


def hashes(nbytes: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=nbytes, max_size=nbytes).filter(any)


labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=10)
hosts = st.one_of(
    st.builds("{}.{}.org".format, labels.map("h{}".format), labels),
    st.ip_addresses(v=4).map(str),
)
ports = st.integers(1, 65535)
tails = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), max_size=20)
udp_urls = st.builds("udp://{}:{}/{}".format, hosts, ports, labels)
http_urls = st.builds("https://{}:{}/{}?key={}&n=1".format, hosts, ports, labels, labels)
peers = st.tuples(st.one_of(hosts, st.ip_addresses(v=6).map(str)), ports)
info_hashes = st.one_of(
    st.builds(InfoHash, v1=hashes(20)),
    st.builds(InfoHash, v2=hashes(32)),
    st.builds(InfoHash, v1=hashes(20), v2=hashes(32)),
)
magnets = st.builds(
    Magnet,
    info_hashes,
    name=st.text(st.characters(codec="utf-8"), max_size=30),
    trackers=st.lists(st.one_of(udp_urls, http_urls), unique=True, max_size=4).map(tuple),
    web_seeds=st.lists(http_urls, unique=True, max_size=2).map(tuple),
    peers=st.lists(peers, unique=True, max_size=3).map(tuple),
)


@given(magnets)
def test_a_formatted_magnet_parses_to_itself_without_notes(magnet: Magnet) -> None:
    assert parse_magnet(format_magnet(magnet)) == (magnet, ())


@given(st.text())
def test_any_text_gives_a_magnet_or_a_request_error(text: str) -> None:
    for candidate in (text, f"magnet:?{text}", f"magnet:?xt=urn:btih:{V1}&tr={text}&x.pe={text}&{text}"):
        try:
            magnet, _ = parse_magnet(candidate)
        except RequestError as error:
            assert error.message and error.hint
        else:
            assert parse_magnet(format_magnet(magnet))[0] == magnet


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (V1, "a bare hash"),
        (V1.upper(), "a bare hash in upper case"),
        (f"urn:btih:{V1}", "a bare topic"),
        (f"  'magnet:?xt=urn:btih:{V1}'\n", "quotes and blanks from a shell or a chat"),
        (f"<magnet:?xt=urn:btih:{V1}>", "angle brackets from mail"),
        (f"magnet:xt=urn:btih:{V1}", "no question mark, as the LLaMA link circulates"),
        (f"MAGNET:?XT=urn:btih:{V1}", "upper case keys"),
        (f"magnet:?xt=urn:btih:{V1.upper()}", "upper case hex"),
        (f"magnet:?xt=urn%3Abtih%3A{V1}", "escaped topic"),
        (f"magnet:/?xt=urn:btih:{V1}", "a slash that browsers add"),
        (f"magnet:?xt.1=urn:btih:{V1}", "numbered topic"),
        (f"magnet%3A%3Fxt%3Durn%3Abtih%3A{V1}", "escaped as a whole"),
        (f"'magnet%253a%253Fxt%253Durn%253Abtih%253A{V1}", "escaped twice, and half quoted"),
        (f"magnet:?xt=urn:btih:{V1}&xt=urn:btmh:1220{'0' * 64}", "zeros for the hash it has not"),
        (f"magnet:?xt=urn:btih:{base64.b32encode(bytes.fromhex(V1)).decode()}", "base32"),
        (f"magnet:?xt=urn:btih:{base64.b32encode(bytes.fromhex(V1)).decode().lower()}", "base32, lower case"),
    ],
)
def test_the_hash_survives_the_damage_links_take(text: str, reason: str) -> None:
    assert parse_magnet(text)[0].info_hash == V1_HASH, reason


@pytest.mark.parametrize(
    ("raw", "expected", "noted"),
    [
        ("udp://t.org:80/announce", "udp://t.org:80/announce", ""),  # not escaped
        ("udp%3A%2F%2Ft.org%3A80", "udp://t.org:80", ""),  # a UDP tracker needs no path
        ("udp%253A%252F%252Ft.org%253A80", "udp://t.org:80", "unescaped twice"),
        ("http%3A%2F%2F[::1]%3A80%2Fa", "http://[::1]:80/a", ""),
        # A site linked the text in the middle of an escape; Mistral's magnets circulate like this.
        ("udp%3A%2F%http://2Ft.org%3A1337%2Fannounce", "udp://t.org:1337/announce", "removed"),
        ("http://t.org/a?passkey=1&left=2", "http://t.org/a?passkey=1&left=2", "part of the URL"),
        ("udp%3A%2F%https://t.co/abc", None, "dropped tracker"),  # shortened: where it led is gone
        ("https://t.co/abc", None, "shortened by t.co"),
        ("udp%3A%2F%2Ft.org", None, "no port"),
        ("udp%3A%2F%2Ft.org%3A99999", None, "cannot be read"),
        ("wss://t.org:443", None, "does not start with"),
        ("http%3A%2F%2Fbad%zzhost%2F", None, "host"),
    ],
)
def test_trackers_are_repaired_or_dropped_with_a_note(raw: str, expected: str | None, noted: str) -> None:
    magnet, notes = parse_magnet(f"magnet:?xt=urn:btih:{V1}&tr={raw}")
    assert magnet.trackers == ((expected,) if expected else ())
    assert noted in " ".join(notes)
    assert bool(notes) == bool(noted)


def test_a_link_escaped_as_a_whole_keeps_its_trackers_and_says_so() -> None:
    link = format_magnet(Magnet(V1_HASH, "a&b", ("udp://t.org:80/a",)))
    magnet, notes = parse_magnet(quote(link, safe=""))
    assert (magnet.name, magnet.trackers) == ("a&b", ("udp://t.org:80/a",))
    assert notes == ("unescaped the whole link",)


def test_zeros_beside_a_hash_are_dropped_with_a_note() -> None:
    magnet, notes = parse_magnet(f"magnet:?xt=urn:btmh:1220{'0' * 64}&xt=urn:btih:{V1}")
    assert magnet.info_hash == V1_HASH
    assert "zeros" in " ".join(notes)


def test_html_escaped_links_keep_all_their_parts() -> None:
    magnet, notes = parse_magnet(f"magnet:?xt=urn:btih:{V1}&amp;dn=grok+1&amp;tr=udp%3A%2F%2Ft.org%3A80")
    assert (magnet.name, magnet.trackers) == ("grok 1", ("udp://t.org:80",))
    assert notes == ("read '&amp;' as '&'",)


def test_hybrid_and_v2_links_carry_both_hashes() -> None:
    v2 = parse_magnet(f"magnet:?xt=urn:btmh:1220{V2}")[0].info_hash
    both = parse_magnet(f"magnet:?xt=urn:btih:{V1}&xt=urn:btmh:1220{V2}")[0].info_hash
    assert (v2.v1, v2.v2_hex, v2.hex) == (None, V2, V2)
    assert (both.v1_hex, both.v2_hex, both.hex) == (V1, V2, V1)
    assert parse_magnet(V2)[0].info_hash == v2
    assert v2.names(both) and V1_HASH.names(both) and not both.names(v2)


def test_peers_are_addresses_names_and_v6() -> None:
    peers = "x.pe=10.0.0.1:6881&x.pe=[::1]:1&x.pe=node-3:2&x.pe=x"
    magnet, notes = parse_magnet(f"magnet:?xt=urn:btih:{V1}&{peers}")
    assert magnet.peers == (("10.0.0.1", 6881), ("::1", 1), ("node-3", 2))
    assert len(notes) == 1


@pytest.mark.parametrize(
    "text", ["", "10.0.0.1", "host:0", "host:65536", "::1:80", "[10.0.0.1]:80", "a b:1", "-:1"]
)
def test_peers_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(RequestError):
        parse_peer(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a magnet"),
        ("https://example.org/x.torrent", "not a magnet"),
        ("magnet:?dn=x", "no info-hash"),
        ("magnet:?xt=urn:sha1:YNCKHTQCWBTRNJIV4WNAE52SJUQCZO5C", "no info-hash"),
        (f"magnet:?xt=urn:btih:{V1[:-1]}", "wrong length"),
        (f"magnet:?xt=urn:btih:{'0' * 40}", "no info-hash but zeros"),
        (f"magnet:?xt=urn:btih:{'A' * 32}", "no info-hash but zeros"),
        (f"magnet:?xt=urn:btmh:1220{'0' * 64}", "no info-hash but zeros"),
        ("0" * 64, "not a magnet"),
        ("a" * 32, "not a magnet"),
        (f"magnet:?xt=urn:btmh:1114{V1}", "wrong length"),
        (f"magnet:?xt=urn:btih:{V1}&xt=urn:btih:{'1' * 40}", f"{'1' * 40} and {V1}"),
    ],
)
def test_links_without_one_identity_say_why(text: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_magnet(text)
    assert says in caught.value.message
    assert caught.value.hint


def test_the_same_hash_twice_is_no_conflict() -> None:
    assert parse_magnet(f"magnet:?xt=urn:btih:{V1}&xt=urn:btih:{V1.upper()}")[0].info_hash == V1_HASH
