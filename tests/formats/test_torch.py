"""What torch saves is found bit for bit, zip and legacy; what it does not save, or would run, is refused."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist.core.extent import Extent
from gdist.core.tensor import FoundArray, Order
from gdist.errors import CorruptError, GdistError, UnsupportedError
from gdist.formats import SNIFF_BYTES, drive, pickle_tree, torch_legacy, torch_zip
from gdist.formats.detect import CHECKS, detect
from gdist.testing.checkpoints import numpy_dtype
from gdist.testing.formats import Reader

FORMS = ("torch", "torch-legacy")
DTYPES = (
    *(torch.bool, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(
        torch.float8_e4m3fn,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2,
        torch.float8_e5m2fnuz,
        torch.float8_e8m0fnu,
    ),
)


def saved(value: object, form: str = "torch", **how: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=form == "torch", **how)
    return out.getvalue()


def scan(data: bytes) -> dict[str, FoundArray]:
    """What is found, by key; the thorough scan must agree."""
    kind = detect(data[:SNIFF_BYTES], len(data))
    assert kind is not None
    found = drive(kind.scan(len(data)), Reader(data))
    assert drive(CHECKS[kind.NAME](len(data)), Reader(data)) == found
    assert len({array.key for array in found}) == len(found)
    return {array.key: array for array in found}


def read(data: bytes, found: FoundArray) -> bytes:
    """The bytes of an array in C order, put together from its parts."""
    array = np.zeros(found.shape, numpy_dtype(found.dtype))
    for part in found.parts:
        raw = np.frombuffer(data[part.extent.start : part.extent.stop], array.dtype)
        array[part.box.slices()] = raw.reshape(part.box.shape, order=part.order.value)
    return array.tobytes()


def bytes_of(tensor: torch.Tensor) -> bytes:
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    return bytes(copy.untyped_storage().tolist())


def assert_same(data: bytes, expected: Mapping[str, torch.Tensor]) -> dict[str, FoundArray]:
    found = scan(data)
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert found[key].shape == tuple(tensor.shape), key
        assert found[key].dtype.name == str(tensor.dtype).removeprefix("torch."), key
        assert read(data, found[key]) == bytes_of(tensor), key
    return found


def flat(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a tree by their keys, the plain way."""
    if isinstance(value, torch.Tensor):
        yield ".".join(path), value
    elif isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(item, (*path, str(key)))


def refused(value: object, words: str, error: type[GdistError] = UnsupportedError) -> None:
    for form in FORMS:
        with pytest.raises(error, match=words):
            scan(saved(value, form))


# --- what is found ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_element_type_is_found(dtype: torch.dtype, form: str) -> None:
    raw = torch.arange(48, dtype=torch.uint8)
    tensor = (raw % 2).bool() if dtype == torch.bool else raw.view(dtype)
    assert_same(
        saved({"t": tensor, "two": tensor.reshape(-1, 1)}, form), {"t": tensor, "two": tensor[:, None]}
    )


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """A view of a storage with any offset and strides: slices, transposes, expanded and overlapping ones."""
    dimensions = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=4))
    offset = draw(st.integers(0, 5))
    size = offset + 1 + sum(max(n - 1, 0) * s for n, s in dimensions)
    dtype = draw(st.sampled_from(DTYPES))
    raw = torch.arange(size * dtype.itemsize, dtype=torch.int64)
    base = (raw % 2).bool() if dtype == torch.bool else (raw % 251).to(torch.uint8).view(dtype)
    return torch.as_strided(base, [n for n, _ in dimensions], [s for _, s in dimensions], offset)


@settings(max_examples=120)
@given(st.lists(views(), min_size=1, max_size=3), st.sampled_from(FORMS), st.sampled_from([2, 3, 4, 5]))
def test_any_view_is_found(tensors: list[torch.Tensor], form: str, protocol: int) -> None:
    tree = {"list": tensors, "tied": (tensors[0], {7: tensors[-1]})}
    assert_same(
        saved(tree, form, pickle_protocol=2 if form == "torch-legacy" else protocol), dict(flat(tree))
    )


@pytest.mark.parametrize("form", FORMS)
def test_tied_and_strided_tensors_lie_on_the_same_bytes(form: str) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tree = {"base": base, "tied": base, "t": base.t(), "rows": base[1:3], "columns": base[:, ::2]}
    found = assert_same(saved(tree, form), tree)
    assert found["base"].extent == found["tied"].extent == found["t"].extent
    assert found["t"].order is Order.F and not found["t"].runs
    assert found["rows"].extent == Extent(found["base"].extent.start + 24, 48)
    assert len(found["columns"].runs) == 12


@pytest.mark.parametrize("form", FORMS)
def test_a_model_and_its_optimizer_are_found(form: str) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 2), torch.nn.BatchNorm2d(3), torch.nn.Linear(3, 3))
    model[2].weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    tree = {
        "model": model.state_dict(),
        "parameters": list(model.parameters()),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "none": None,
    }
    found = assert_same(saved(tree, form), dict(flat(tree)))
    assert "optimizer.state.0.exp_avg" in found and "model.1.num_batches_tracked" in found


@pytest.mark.parametrize("form", FORMS)
def test_one_tensor_alone_has_no_key(form: str) -> None:
    assert_same(saved(torch.arange(3), form), {"": torch.arange(3)})


@pytest.mark.parametrize("form", FORMS)
def test_plain_data_beside_tensors_is_passed_over(form: str) -> None:
    number = np.float64(2.5)
    tree = {
        "t": torch.ones(2),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "size": torch.ones(2, 3).shape,
        "numbers": [1, -5, 2**40, 0.5, True, number, 3j],
        "texts": ("é", b"\xff\x00", ""),
        "sets": {1, 2},
        "counts": collections.Counter("abc"),
        "default": collections.defaultdict(list),
        "path": PurePosixPath("a/b"),
        "arguments": argparse.Namespace(lr=0.5, layers=[1, 2]),
        ("a", 1): "a tuple as a key",
        None: 1,
        0.5: 2,
        dict: 3,
        "": 4,
    }
    tree["shared"] = [tree["numbers"], tree["numbers"]]
    assert_same(saved(tree, form), {"t": torch.ones(2)})


def test_training_frameworks_objects_are_words() -> None:
    """As in Stable Diffusion 1.4: a dict whose keys are classes that need not be installed here."""
    data = hand_made(
        b"}(X\x09\0\0\0callbacks}cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
        b"}X\1\0\0\0mcnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\nX\2\0\0\0f8K\0K\1\x87RX\3\0\0\0abct"
        b"Rss"
        b"X\5\0\0\0hypercpytorch_lightning.utilities.parsing\nAttributeDict\n)\x81X\2\0\0\0lrG?\xe0\0\0\0\0\0\0s"
        b"X\1\0\0\0t" + TENSOR + b"u."
    )
    assert list(scan(data)) == ["t"]


def test_a_tensor_below_a_class_has_its_name_in_the_path() -> None:
    """Lightning before 1.6 kept the state of a callback by its class; a best score is a tensor."""
    best = b"}X\x10\0\0\0best_model_score" + TENSOR + b"s"
    data = hand_made(b"}cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n" + best + b"s.")
    assert list(scan(data)) == [
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint.best_model_score"
    ]


@pytest.mark.parametrize("form", FORMS)
def test_tensors_inside_objects_are_named_by_their_attributes(form: str) -> None:
    one, two = torch.ones(2), torch.zeros(3)
    inner = argparse.Namespace(deep=[two])
    inner.parent = outer = argparse.Namespace(w=one, inner=inner)  # a cycle
    assert_same(saved({"o": outer}, form), {"o.w": one, "o.inner.deep.0": two})
    assert_same(saved(inner, form), {"deep.0": two, "parent.w": one})


def test_tensors_inside_dicts_of_other_classes_are_named_by_their_keys() -> None:
    made = b"cpytorch_lightning.utilities.parsing\nAttributeDict\n)\x81X\1\0\0\0w" + TENSOR + b"s"
    assert list(scan(hand_made(b"}X\1\0\0\0h" + made + b"s."))) == ["h.w"]


# --- the zip itself ---------------------------------------------------------------------------------------

TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\2tQ"
    b"K\0K\2\x85K\1\x85\x89ccollections\nOrderedDict\n)RtR"
)


def hand_made(pickled: bytes, members: Mapping[str, bytes] | None = None) -> bytes:
    """A checkpoint around a pickle's opcodes, as torch's own writer lays it out; storage "0" has 8 bytes."""
    out = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(out)
    default = {"data.pkl": b"\x80\x02" + pickled, "byteorder": b"little", "data/0": bytes(8)}
    for name, content in (default | dict(members or {})).items():
        writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    return out.getvalue()


def test_a_scan_reads_the_ends_and_the_check_every_header() -> None:
    tree = {f"t{n}": torch.zeros(1 << 17) for n in range(8)}
    data = saved(tree)
    few, all_ = Reader(data), Reader(data)
    found = drive(torch_zip.scan(len(data)), few)
    assert found == drive(torch_zip.check(len(data)), all_)
    inside = [e for e in few.asked if e.start > 1 << 17 and e.stop < len(data) - (1 << 17)]
    assert not inside, "what lies between the first and the last storage is not read"
    assert len(all_.asked) >= len(few.asked) + 7


def test_a_local_header_that_moves_a_storage_is_refused_by_the_check() -> None:
    data = saved({"a": torch.zeros(1 << 17), "b": torch.zeros(1 << 17)})
    at = data.index(b"archive/data/0") - 2
    moved = data[:at] + struct.pack("<H", struct.unpack("<H", data[at : at + 2])[0] + 64) + data[at + 2 :]
    drive(torch_zip.scan(len(moved)), Reader(moved))
    with pytest.raises(CorruptError, match="local header of 'archive/data/0'"):
        drive(torch_zip.check(len(moved)), Reader(moved))


def test_another_alignment_is_read_from_the_local_headers() -> None:
    with torch.utils.serialization.config.patch("save.storage_alignment", 4096):
        data = saved({"a": torch.arange(5), "b": torch.arange(9.0)})
    assert_same(data, {"a": torch.arange(5), "b": torch.arange(9.0)})


def test_a_big_endian_checkpoint_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="big-endian"):
        scan(hand_made(TENSOR + b".", {"byteorder": b"big"}))
    with pytest.raises(CorruptError, match="says b'middle', neither"):
        scan(hand_made(TENSOR + b".", {"byteorder": b"middle"}))


def test_torchscript_and_other_members_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="TorchScript"):
        scan(hand_made(TENSOR + b".", {"constants.pkl": b"", "code/__torch__.py": b""}))
    with pytest.raises(UnsupportedError, match=r"1 members torch does not write: 'archive/evil\.py'"):
        scan(hand_made(TENSOR + b".", {"evil.py": b"import os"}))
    assert list(scan(hand_made(TENSOR + b".", {".data/more": b"passed over, as torch does"}))) == [""]


# --- what is refused --------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return print, ("executed",)


def test_what_would_run_is_refused_by_name() -> None:
    refused({"t": torch.ones(2), "e": Evil()}, r"the name (__builtin__|builtins)\.print")
    refused(torch.nn.Linear(2, 2), r"the name torch\.nn\.modules\.linear\.Linear|module")


def test_tensors_without_plain_elements_are_refused_by_what_they_are() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that these are experimental, or will go
        refused(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8), "quantised")
        refused(torch.eye(3).to_sparse_csr(), "sparse tensor")
        refused(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested tensor")
        refused(torch.zeros(2, dtype=torch.complex32), "complex32")
    refused(torch.eye(3).to_sparse(), "sparse tensor")
    refused(torch.ones(3, device="meta"), "meta")
    refused(torch.ones(3, dtype=torch.complex64).conj(), "conjugate")
    refused({"n": np.ones(3)}, "a NumPy array inside the pickle")


def test_a_tensor_that_has_no_name_is_refused() -> None:
    refused({0.5: torch.ones(2)}, "an array below a key that is a float")
    refused({"": torch.ones(2)}, "an array below a key that is empty")
    refused({1: torch.ones(2), "1": torch.ones(2)}, "two arrays whose path is '1'")
    shared = {"w": torch.ones(2)}
    refused([shared, shared], "somewhere else too")


STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\2t"


@pytest.mark.parametrize(
    ("opcodes", "error", "words"),
    [
        (b"cos\nsystem\nX\2\0\0\0id\x85R.", UnsupportedError, r"the name os\.system"),
        (b"ctorch._utils\n_rebuild_tensor_v2.x\n.", UnsupportedError, r"_rebuild_tensor_v2\.x"),
        (b"K\1Q.", UnsupportedError, "a persistent id that is no storage"),
        (STORAGE.replace(b"storage", b"storagf") + b"Q.", UnsupportedError, "no storage"),
        (STORAGE.replace(b"K\2", b"J\xff\xff\xff\xff") + b"Q.", CorruptError, "size with -1"),
        (
            STORAGE.replace(b"cpu", b"met").replace(b"\3\0\0\0met", b"\4\0\0\0meta") + b"Q.",
            UnsupportedError,
            "meta",
        ),
        (STORAGE + b"Q.", UnsupportedError, "a bare storage at ''"),
        (TENSOR.replace(b"K\2tQ", b"K\3tQ") + b".", CorruptError, "takes 12 bytes, archive/data/0 has 8"),
        (TENSOR.replace(b"\x000X", b"\x009X") + b".", CorruptError, "storage '9' has no member"),
        (TENSOR.replace(b"K\2\x85", b"K\3\x85") + b".", CorruptError, "needs 3 elements, its storage has 2"),
        (TENSOR.replace(b"K\1\x85", b"K\2\x85") + b".", CorruptError, "needs 3 elements"),
        (TENSOR.replace(b"K\1\x85", b")") + b".", CorruptError, "is none"),
        (
            TENSOR.replace(b"K\1\x85", b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85") + b".",
            CorruptError,
            "elements",
        ),
        (TENSOR.replace(b"QK\0", b"QJ\xfe\xff\xff\xff") + b".", CorruptError, "offset with -2"),
        (TENSOR.replace(b"K\2\x85", b"]\x85") + b".", CorruptError, "shape with a list"),
        (TENSOR.replace(b"(" + STORAGE + b"Q", b"(K\1") + b".", UnsupportedError, "a tensor of a int"),
        (b"ctorch._utils\n_rebuild_qtensor\n.", UnsupportedError, "a quantised tensor"),
        (b"ctorch\nQInt8Storage\n.", UnsupportedError, "quantised elements"),
        (b"ctorch.jit._pickle\nrestore_type_tag\n.", UnsupportedError, "TorchScript"),
        (b"ccollections\nOrderedDict\n)R}X\1\0\0\0xK\1sb.", UnsupportedError, "a state for a dict"),
        (b"]q\0h\0a.", UnsupportedError, "somewhere else too"),
        (b"(" * 99 + b".", UnsupportedError, "marks"),
        (b"]" * 65 + b"a" * 64 + b".", UnsupportedError, "nested 64 deep"),
        (b"N" + b"\x85" * 5000 + b".", UnsupportedError, "nested 64 deep"),
        (b"cbuiltins\nset\nN" + b"\x85" * 5000 + b"R.", UnsupportedError, "objects nested 1024 deep"),
        (b"}N" + b"\x85" * 5000 + b"K\1s.", UnsupportedError, "a dict key that is a tuple"),
        (b"N.N.", UnsupportedError, "2 bytes follow the end of the pickle"),
        (b"N", CorruptError, "in the middle of an opcode"),
        (b"X\xff\xff\xff\x7f.", UnsupportedError, "BINUNICODE"),
        (b"i__main__\nx\n.", UnsupportedError, "INST"),
        (b"\x82\1.", UnsupportedError, "EXT1"),
        (b"Pid\n.", UnsupportedError, "PERSID"),
    ],
)
def test_what_torch_does_not_write_is_refused(opcodes: bytes, error: type[GdistError], words: str) -> None:
    with pytest.raises(error, match=words):
        scan(hand_made(opcodes))


LONG = b"(" + b"N" * 20_000 + b"tq\1"  # a tuple of 20,000, memoised: two bytes use it again


@pytest.mark.parametrize(
    ("again", "words"),
    [
        (b"cbuiltins\nset\nh\1R", None),
        (b"cargparse\nNamespace\nh\1\x81", None),
        (b"cargparse\nNamespace\n)\x81h\1b", None),
        (b"}h\1Ns", "a dict key that is a tuple"),
        (b"ctorch._utils\n_rebuild_tensor_v2\nh\1R", "with 20000 arguments"),
    ],
)
def test_what_is_used_again_is_not_copied_or_walked_again(again: bytes, words: str | None) -> None:
    """Were it, this would take hours and all memory."""
    opcodes = b"]" + LONG + b"a(" + again * 20_000 + b"e."
    if words is None:
        assert scan(hand_made(opcodes)) == {}
    else:
        with pytest.raises(UnsupportedError, match=words):
            scan(hand_made(opcodes))


def test_more_arrays_than_are_read_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more costs two bytes of the pickle."""
    monkeypatch.setattr(pickle_tree, "MAX_ARRAYS", 3)
    assert len(scan(hand_made(b"](" + TENSOR + b"q\1h\1h\1e."))) == 3
    with pytest.raises(UnsupportedError, match="more than 3 arrays"):
        scan(hand_made(b"](" + TENSOR + b"q\1h\1h\1h\1e."))


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_cut_short_is_refused_everywhere(form: str) -> None:
    data = saved({"a": torch.arange(3), "b": torch.arange(9.0)}, form)
    for stop in range(99, len(data), 7):
        with pytest.raises(GdistError):
            scan(data[:stop])


# --- the legacy form --------------------------------------------------------------------------------------


def legacy(system: object, pickled: bytes, keys: object, storages: bytes) -> bytes:
    parts = [torch_legacy.MAGIC, torch_legacy.VERSION, pickle.dumps(system, 2), b"\x80\x02" + pickled]
    return b"".join([*parts, pickle.dumps(keys, 2), storages])


SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
EIGHT = struct.pack("<q2f", 2, 1.0, 2.0)


def test_a_view_of_a_storage_is_found() -> None:
    """Before torch 0.4.1 a storage could be a part of another; its id then has six items."""
    six = STORAGE[:-1].replace(b"K\2", b"K\4") + b"(X\1\0\0\0vK\1K\2ttQ"
    data = legacy(
        SYSTEM, TENSOR.replace(STORAGE + b"Q", six) + b".", ["0"], struct.pack("<q4f", 4, 0, 1, 2, 3)
    )
    (found,) = scan(data).values()
    assert read(data, found) == struct.pack("<2f", 1, 2)
    outside = six.replace(b"K\1K\2tt", b"K\3K\2tt")
    with pytest.raises(CorruptError, match="a storage's view up to 20 of 16 bytes"):
        scan(legacy(SYSTEM, TENSOR.replace(STORAGE + b"Q", outside) + b".", ["0"], bytes(24)))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"system": {**SYSTEM, "little_endian": False}}, UnsupportedError, "big-endian"),
        ({"system": {**SYSTEM, "protocol_version": 1000}}, CorruptError, "third pickle"),
        ({"system": [1]}, CorruptError, "third pickle"),
        ({"keys": []}, CorruptError, "1 storages are not listed, 0 not used"),
        ({"keys": ["0", "1"]}, CorruptError, "0 storages are not listed, 1 not used"),
        ({"keys": ["0", "0"]}, CorruptError, "not a list of storage keys, each once"),
        ({"keys": {"0": 1}}, CorruptError, "not a list of storage keys"),
        ({"storages": EIGHT + b"x"}, CorruptError, "the storages end at"),
        ({"storages": EIGHT[:-1]}, CorruptError, "the storages end at"),
        ({"pickled": b"cos\nsystem\n."}, UnsupportedError, r"the name os\.system"),
    ],
)
def test_a_legacy_file_that_contradicts_itself_is_refused(
    change: dict[str, Any], error: type[GdistError], words: str
) -> None:
    whole: dict[str, Any] = {"system": SYSTEM, "pickled": TENSOR + b".", "keys": ["0"], "storages": EIGHT}
    assert list(scan(legacy(**whole))) == [""]
    with pytest.raises(error, match=words):
        scan(legacy(**(whole | change)))


def test_a_count_that_differs_is_refused_by_the_check() -> None:
    data = legacy(SYSTEM, TENSOR + b".", ["0"], struct.pack("<q2f", 3, 1.0, 2.0))
    drive(torch_legacy.scan(len(data)), Reader(data))
    with pytest.raises(CorruptError, match="has 3 elements of 4 bytes, its tensors speak of 8 bytes"):
        drive(torch_legacy.check(len(data)), Reader(data))


def test_other_versions_are_named() -> None:
    other = torch_legacy.MAGIC + b"\x80\x02M\xe8\x03." + bytes(100)
    with pytest.raises(UnsupportedError, match="not of version 1001"):
        scan(other)


@settings(max_examples=60)
@given(st.integers(1, 2**63 - 1), st.integers(1, 2**63 - 1))
def test_sizes_beyond_the_file_are_refused_whatever_they_are(size: int, stride: int) -> None:
    assert prod((size, stride)) > 0
    big = b"\x8a\x08" + struct.pack("<Q", size) + b"\x85"
    step = b"\x8a\x08" + struct.pack("<Q", stride) + b"\x85"
    if size > 2:
        with pytest.raises(GdistError):
            scan(hand_made(TENSOR.replace(b"K\2\x85K\1\x85", big + step) + b"."))
