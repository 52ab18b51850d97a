"""Archives of GNU tar and Python give their members; every other one is refused, and says why."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist import errors
from gdist.core.extent import Extent
from gdist.errors import CorruptError, GdistError, UnsupportedError
from gdist.formats import SNIFF_BYTES, drive
from gdist.formats import tar as reader
from gdist.formats.detect import detect, detect_container
from gdist.formats.reading import AHEAD_BYTES
from gdist.run.headers import FileReport, identify
from gdist.testing import tar_samples
from gdist.testing.tar_samples import END, header, member, pax

CORPUS = Path(__file__).with_name("corpus") / "tar"

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def identified(data: bytes) -> tuple[FileReport, list[Extent]]:
    asked = []

    def read(extent: Extent) -> bytes:
        assert extent.stop <= len(data), f"{extent} of {len(data)} bytes"
        asked.append(extent)
        return data[extent.start : extent.stop]

    report = FileReport()
    drive(identify(len(data), report), read)
    return report, asked


def members(data: bytes) -> dict[str, bytes]:
    found = identified(data)[0].members
    return {m.path: data[m.extent.start : m.extent.stop] for m in found}


def made(files: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


NAMES = st.lists(
    st.text(
        st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\\/"), min_size=1, max_size=60
    ),
    min_size=1,
    max_size=4,
).map("/".join)
# What begins as a format does, and Hypothesis tries the constants of our sources, is read as one.
CONTENT = st.binary(max_size=2000).filter(lambda data: detect(data[:SNIFF_BYTES], len(data)) is None)
PLAIN = NAMES.filter(lambda name: all(part not in (".", "..") for part in name.split("/")))


@settings(max_examples=100)
@given(
    st.dictionaries(PLAIN, CONTENT, max_size=8),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_what_python_writes_comes_back(files: dict[str, bytes], kind: int) -> None:
    assert members(made(files, kind)) == files


@pytest.mark.parametrize("kind", FORMATS)
def test_long_names_links_and_directories(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "r"
    deep = root / ("d" * 90) / ("e" * 90)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"deep" * 1000)
    (root / "plain").write_bytes(b"x")
    (root / "empty").write_bytes(b"")
    (root / "link").symlink_to("/etc/passwd")
    (root / "again").hardlink_to(root / "plain")
    with tarfile.open(tmp_path / "t.tar", "w", format=FORMATS[kind]) as tar:
        tar.add(root, "./r", filter=lambda info: info)
    found = members((tmp_path / "t.tar").read_bytes())
    long = f"r/{'d' * 90}/{'e' * 90}/file"
    assert found[long] == b"deep" * 1000 and found["r/empty"] == b""
    assert set(found) - {"r/again", "r/plain"} == {long, "r/empty"}, "a hard link is one of two names"


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar here")
@pytest.mark.parametrize("kind", ["ustar", "gnu", "posix"])
def test_what_the_tar_command_writes_comes_back(kind: str, tmp_path: Path) -> None:
    (tmp_path / "r/below").mkdir(parents=True)
    (tmp_path / "r/a").write_bytes(b"a" * 513)
    (tmp_path / f"r/below/{'n' * 120 if kind != 'ustar' else 'n'}").write_bytes(b"b")
    command = ["tar", f"--format={kind}", "-cf", str(tmp_path / "t.tar"), "-C", str(tmp_path / "r"), "."]
    subprocess.run(command, check=True)
    found = members((tmp_path / "t.tar").read_bytes())
    assert sorted(found.values()) == [b"a" * 513, b"b"] and "a" in found


def test_sizes_that_only_pax_or_base_256_can_say_are_read() -> None:
    size = 9 * 2**30
    start = len(pax((b"size", b"%d" % size)))
    for head in (pax((b"size", b"%d" % size)) + header(size=0), header(size=tar_samples.base256(size))):
        content = len(head)
        total = content + size + 1024

        def read(extent: Extent, head: bytes = head) -> bytes:
            data = head[extent.start : extent.stop]
            return data + bytes(extent.length - len(data))

        report = FileReport()
        drive(identify(total, report), read)
        assert [m.extent for m in report.members] == [Extent(content, size)] and content in (512, start + 512)


def test_an_archive_is_detected_by_content() -> None:
    data = made({"a": b"x"})
    assert detect_container(data[:SNIFF_BYTES], len(data)) is reader
    assert detect_container(bytes(512), 512) is None
    report, _ = identified(data)
    assert report.format is None and report.foreign is None, "an archive without tensors is any file"


def test_small_members_are_read_in_large_steps_and_large_ones_are_passed_over() -> None:
    _, asked = identified(made({f"f{number}": bytes(1000) for number in range(2000)}))
    assert len(asked) < 2 * 2000 * 1536 / AHEAD_BYTES + 10
    data = made({f"f{number}": bytes(1 << 20) for number in range(8)})
    _, asked = identified(data)
    assert sum(extent.length for extent in asked) < len(data) / 4


@pytest.mark.parametrize("sample", list(tar_samples.samples()), ids=lambda sample: sample[0])
def test_what_must_be_refused_is(sample: tuple[str, bytes, str, str]) -> None:
    name, data, error, words = sample
    assert (CORPUS / name).read_bytes() == data, "gdist.testing.tar_samples writes them anew"
    with pytest.raises(GdistError) as caught:
        identified(data)
    assert type(caught.value) is getattr(errors, error)
    assert words in caught.value.message


def test_the_corpus_has_no_other_files() -> None:
    assert {path.name for path in CORPUS.iterdir()} == {name for name, *_ in tar_samples.samples()}


def test_too_many_members_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_MEMBERS", 3)
    with pytest.raises(UnsupportedError, match="more than 3"):
        identified(made(dict.fromkeys("abcd", b"")))


def test_an_error_in_a_member_names_it() -> None:
    with pytest.raises((CorruptError, UnsupportedError), match=r"^below/w\.pkl: "):
        identified(made({"ok": b"", "below/w.pkl": b"\x80\x04\x95"}))


@settings(max_examples=400)
@given(st.data())
def test_damaged_archives_give_members_or_an_error(data: st.DataObject) -> None:
    sample = bytearray(pax((b"path", b"b")) + member(b"x" * 600) + member(name=b"c") + END)
    for _ in range(data.draw(st.integers(1, 4))):
        sample[data.draw(st.integers(0, len(sample) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(sample)))
    with contextlib.suppress(GdistError):
        identified(bytes(sample[: cut or len(sample)]))
