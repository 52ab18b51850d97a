"""Magnet links and info-hashes, and the repair of the broken links that circulate.

A magnet names a torrent by the hash of its info dictionary and says where to ask for it:

    magnet:?xt=urn:btih:<v1>&xt=urn:btmh:1220<v2>&dn=<name>&tr=<tracker>&ws=<web seed>&x.pe=<peer>

v1 hashes are SHA-1 (BEP 9, 20 bytes, hex or base32), v2 hashes are SHA-256 (BEP 52, 32 bytes, as a
multihash); a hybrid torrent has both. Links are copied through chats, mail and HTML and come out damaged:
what can only have meant one thing is repaired, the rest is dropped, and a note says which.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, unquote_plus, urlsplit

from gdist.errors import RequestError

_V1_BYTES = 20
_V2_BYTES = 32
_MULTIHASH_SHA256 = "1220"  # multihash code 0x12 (sha2-256), length 0x20
_TRACKER_SCHEMES = ("udp", "http", "https")
_WEB_SEED_SCHEMES = ("http", "https")
_KNOWN_KEYS = frozenset(("xt", "dn", "tr", "ws", "as", "xs", "kt", "mt", "xl", "so", "x.pe"))
_SHORTENERS = frozenset(("t.co", "bit.ly", "goo.gl", "tinyurl.com", "ow.ly", "is.gd", "buff.ly", "lnkd.in"))
_ZEROS = re.compile(r"0{40}|A{32}|(1220)?0{64}", re.IGNORECASE)  # in each way a hash is written
_START = re.compile(r"magnet(:|%(25)*3a)", re.IGNORECASE)  # as it is, or escaped, however often
_HOSTNAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_HINT = "give the whole link, starting with magnet:?xt=urn:btih:, or the 40-digit info-hash"


@dataclass(frozen=True, slots=True)
class InfoHash:
    """A torrent's identity: `v1` (20 bytes, SHA-1), `v2` (32 bytes, SHA-256), or both for a hybrid."""

    v1: bytes | None = None
    v2: bytes | None = None

    def __post_init__(self) -> None:
        assert self.v1 or self.v2, "an info-hash needs a v1 or a v2 hash"
        for hash_, nbytes in ((self.v1, _V1_BYTES), (self.v2, _V2_BYTES)):
            assert hash_ is None or len(hash_) == nbytes, f"hash of {len(hash_)} bytes, not {nbytes}"
            assert hash_ is None or any(hash_), "a hash of zeros means none"

    @property
    def v1_hex(self) -> str:
        """40 lower-case digits, or nothing when the torrent has no v1 hash."""
        return self.v1.hex() if self.v1 else ""

    @property
    def v2_hex(self) -> str:
        """64 lower-case digits, or nothing when the torrent has no v2 hash."""
        return self.v2.hex() if self.v2 else ""

    @property
    def hex(self) -> str:
        """The name people use: the v1 digits, or the v2 digits of a torrent without v1."""
        return self.v1_hex or self.v2_hex

    def names(self, other: InfoHash) -> bool:
        """True when `other`, a torrent's full identity, has every hash this one has."""
        return self.v1 in (None, other.v1) and self.v2 in (None, other.v2)


@dataclass(frozen=True, slots=True)
class Magnet:
    """A torrent's identity and where to ask for it; `name` is what the link calls it and may be empty."""

    info_hash: InfoHash
    name: str = ""
    trackers: tuple[str, ...] = ()
    web_seeds: tuple[str, ...] = ()
    peers: tuple[tuple[str, int], ...] = ()


def is_magnet(text: str) -> bool:
    """True for what is meant as a magnet link, whether it can be read or not."""
    return bool(_START.match(text.lstrip("\"'<` ")))


def parse_magnet(text: str) -> tuple[Magnet, tuple[str, ...]]:
    """The magnet that `text` (a link, or a bare info-hash) means, and notes on what was repaired or dropped.

    Raises:
        RequestError: no info-hash in it, one of a wrong length, or two that contradict each other.
    """
    notes: list[str] = []
    clean = text.strip().strip("\"'<>`").strip()
    if is_magnet(clean) and not clean.lower().startswith("magnet:"):
        notes.append("unescaped the whole link")
        while not clean.lower().startswith("magnet:"):  # each turn takes one level of escapes off
            clean = unquote(clean)
    bare = _decode_bare(clean)
    if bare:
        return Magnet(bare), ()
    scheme = re.match(r"magnet:(//?)?\??", clean, re.IGNORECASE)
    if not scheme:
        raise RequestError(f"not a magnet link or an info-hash: {_shown(text)}", hint=_HINT)
    if scheme.group().lower() != "magnet:?":
        notes.append(f"read {scheme.group()!r} as 'magnet:?'")
    query = clean[scheme.end() :]
    if "&amp;" in query:
        query = query.replace("&amp;", "&")
        notes.append("read '&amp;' as '&'")
    found: dict[str, list[str]] = {}
    for key, value in _parameters(query, notes):
        found.setdefault(key, []).append(value)
    info_hash = _info_hash(found.get("xt", []), notes)
    if "so" in found:
        notes.append("ignored the link's choice of files ('so')")
    magnet = Magnet(
        info_hash,
        name=unquote_plus(found["dn"][0]) if "dn" in found else "",
        trackers=_urls(found.get("tr", []), "tracker", _TRACKER_SCHEMES, notes),
        web_seeds=_urls(found.get("ws", []), "web seed", _WEB_SEED_SCHEMES, notes),
        peers=_peers(found.get("x.pe", []), notes),
    )
    return magnet, tuple(notes)


def format_magnet(magnet: Magnet) -> str:
    """The link of a magnet, with every value escaped; `parse_magnet` gives the same magnet back."""
    parts = []
    if magnet.info_hash.v1:
        parts.append(f"xt=urn:btih:{magnet.info_hash.v1_hex}")
    if magnet.info_hash.v2:
        parts.append(f"xt=urn:btmh:{_MULTIHASH_SHA256}{magnet.info_hash.v2_hex}")
    if magnet.name:
        parts.append(f"dn={quote(magnet.name, safe='')}")
    parts += [f"tr={quote(url, safe='')}" for url in magnet.trackers]
    parts += [f"ws={quote(url, safe='')}" for url in magnet.web_seeds]
    parts += [f"x.pe={format_peer(host, port)}" for host, port in magnet.peers]
    return "magnet:?" + "&".join(parts)


def parse_peer(text: str) -> tuple[str, int]:
    """Host and port of `host:port`, `1.2.3.4:port` or `[v6]:port`.

    Raises:
        RequestError: anything else, or a port outside 1 to 65535.
    """
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+)):(\d{1,5})", text.strip())
    host = (match.group(1) or match.group(2)) if match else ""
    port = int(match.group(3)) if match else 0
    if not match or not 0 < port < 65536 or not _is_host(host, bracketed=bool(match.group(1))):
        raise RequestError(f"not a peer's address: {_shown(text)}", hint="write host:port, or [v6]:port")
    return host, port


def format_peer(host: str, port: int) -> str:
    """`host:port`, with brackets around a v6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _decode_hash(text: str) -> InfoHash | None:
    """The hash in 40 hex digits, 32 base32 digits, 64 hex digits or a sha2-256 multihash; zeros are none."""
    if _ZEROS.fullmatch(text):
        return None
    if re.fullmatch(r"[0-9A-Fa-f]{40}", text):
        return InfoHash(v1=bytes.fromhex(text))
    if re.fullmatch(r"[A-Za-z2-7]{32}", text):
        return InfoHash(v1=base64.b32decode(text.upper()))
    if re.fullmatch(r"(1220)?[0-9A-Fa-f]{64}", text):
        return InfoHash(v2=bytes.fromhex(text[-64:]))
    return None


def _decode_bare(text: str) -> InfoHash | None:
    """The hash when the whole source is one, with or without its `urn:`."""
    return _decode_hash(re.sub(r"^(urn:)?bt[im]h:", "", text, flags=re.IGNORECASE))


def _parameters(query: str, notes: list[str]) -> list[tuple[str, str]]:
    """Keys and still escaped values; an `&` inside an unescaped tracker URL does not end it."""
    found: list[tuple[str, str]] = []
    for field in query.split("&"):
        key, equals, value = field.partition("=")
        key = key.strip().lower()
        plain = re.sub(r"\.\d+$", "", key)  # xt.1, tr.2: numbered parameters
        if plain in _KNOWN_KEYS and equals:
            found.append((plain, value.strip()))
        elif found and found[-1][0] in ("tr", "ws") and "?" in found[-1][1]:
            found[-1] = (found[-1][0], f"{found[-1][1]}&{field}")
            notes.append(f"read {field!r} as part of the URL before it")
        elif field.strip() and not key.startswith("x."):
            notes.append(f"ignored parameter {_shown(field)}")
    return found


def _info_hash(topics: list[str], notes: list[str]) -> InfoHash:
    """The one identity all `xt` parameters together give."""
    v1: set[bytes] = set()
    v2: set[bytes] = set()
    zeros = False
    for raw in topics:
        topic = unquote(raw).strip()
        urn = re.match(r"urn:(btih|btmh):", topic, re.IGNORECASE)
        if not urn:
            notes.append(f"ignored topic {_shown(topic)}")
            continue
        digits = topic[urn.end() :].strip().rstrip("/")
        if _ZEROS.fullmatch(digits):
            zeros = True
            notes.append(f"dropped {_shown(topic)}: a hash of zeros means none")
            continue
        found = _decode_hash(digits)
        if not found or (urn.group(1).lower() == "btih" and found.v2):
            raise RequestError(f"the info-hash in {_shown(topic)} has a wrong length or digit", hint=_HINT)
        v1 |= {found.v1} if found.v1 else set()
        v2 |= {found.v2} if found.v2 else set()
    if not v1 and not v2:
        raise RequestError(f"the magnet link has no info-hash{' but zeros' if zeros else ''}", hint=_HINT)
    if len(v1) > 1 or len(v2) > 1:
        names = " and ".join(sorted(h.hex() for h in (v1 if len(v1) > 1 else v2)))
        raise RequestError(f"the magnet link names different torrents: {names}", hint="keep the one you want")
    return InfoHash(next(iter(v1), None), next(iter(v2), None))


def _repair_url(raw: str) -> tuple[str, str]:
    """A URL unescaped, and what had to be repaired in it (may be nothing)."""
    repaired = re.sub(r"%https?://(?=[0-9A-Fa-f]{2})", "%", raw)  # a site "linked" the text after an escape
    url = unquote(repaired).strip()
    note = "removed 'http://' from the middle of an escape" if repaired != raw else ""
    if re.match(r"[a-z]+%3a%2f%2f", url, re.IGNORECASE):
        url, note = unquote(url), "unescaped twice"
    return url, note


def _is_host(host: str, *, bracketed: bool) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).version == (6 if bracketed else 4)
    except ValueError:
        return not bracketed and bool(_HOSTNAME.fullmatch(host)) and ".." not in host


def _url_fault(url: str, schemes: tuple[str, ...]) -> str:
    """Why a URL cannot be used, or nothing."""
    if re.search(r"[\x00-\x20\x7f]", url):
        return "it contains blanks or control characters"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "its host or port cannot be read"
    if parts.scheme not in schemes:
        return f"it does not start with {' or '.join(schemes)}"
    if not _is_host(host, bracketed=":" in host):
        return "its host cannot be read"
    if host in _SHORTENERS:
        return f"it was shortened by {host}"
    if parts.scheme == "udp" and not port:
        return "it has no port"
    return ""


def _urls(raws: list[str], what: str, schemes: tuple[str, ...], notes: list[str]) -> tuple[str, ...]:
    """The usable URLs, each once, in order; a note for each that was repaired or dropped."""
    kept: dict[str, None] = {}
    for raw in raws:
        url, repair = _repair_url(raw)
        fault = _url_fault(url, schemes)
        if fault:
            notes.append(f"dropped {what} {_shown(raw)}: {fault}")
            continue
        if repair:
            notes.append(f"repaired {what} {_shown(url)}: {repair}")
        kept[url] = None
    return tuple(kept)


def _peers(raws: list[str], notes: list[str]) -> tuple[tuple[str, int], ...]:
    kept: dict[tuple[str, int], None] = {}
    for raw in raws:
        try:
            kept[parse_peer(unquote(raw))] = None
        except RequestError as error:
            notes.append(f"dropped peer: {error.message}")
    return tuple(kept)


def _shown(text: str) -> str:
    """`text` for a message: quoted, and cut when long."""
    return repr(text if len(text) <= 120 else text[:117] + "...")
