"""The names that pickles of torch checkpoints may hold, and what each stands for.

Exact names in closed tables, never a prefix: what builds tensors, storages and element types; what is known
and not read, with the reason; and objects of training frameworks that checkpoints hold beside their tensors,
which are passed over. Nothing here is imported or called: they are words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from gdist.core.dtypes import BY_NAME, DType
from gdist.formats.pickle_values import Harmless, Refused


class TorchName(Enum):
    """Functions and classes that are understood."""

    TENSOR_V1 = "_rebuild_tensor"
    TENSOR_V2 = "_rebuild_tensor_v2"
    TENSOR_V3 = "_rebuild_tensor_v3"
    PARAMETER = "_rebuild_parameter"
    PARAMETER_WITH_STATE = "_rebuild_parameter_with_state"
    FROM_TYPE = "_rebuild_from_type_v2"
    TENSOR_TYPE = "torch.Tensor"
    SIZE = "torch.Size"
    ORDERED_DICT = "OrderedDict"
    DEFAULT_DICT = "defaultdict"


@dataclass(frozen=True, slots=True)
class StorageClass:
    """A class of storages; one without element type counts bytes."""

    name: str
    dtype: DType | None


TorchObject = TorchName | StorageClass | Harmless | DType

_STORAGES = {  # torch's class: element type
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
}
_QUANTISED_STORAGES = (
    "QInt8Storage",
    "QInt32Storage",
    "QUInt8Storage",
    "QUInt4x2Storage",
    "QUInt2x4Storage",
)

_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
_UNREAD_DTYPES = (
    *("complex32", "float4_e2m1fn_x2", "quint8", "qint8", "qint32", "quint4x2", "quint2x4"),
    *("bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
)

_UNREAD = {
    ("torch._utils", "_rebuild_qtensor"): "a quantised tensor; dequantise it",
    ("torch._utils", "_rebuild_sparse_tensor"): "a sparse tensor; make it dense",
    ("torch._utils", "_rebuild_sparse_csr_tensor"): "a sparse tensor; make it dense",
    ("torch._utils", "_rebuild_nested_tensor"): "a nested tensor; save its parts",
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): "a tensor without elements (meta)",
    ("torch._utils", "_rebuild_wrapper_subclass"): "a tensor of a subclass that wraps others",
    (
        "torch._utils",
        "_rebuild_device_tensor_from_numpy",
    ): "a tensor of a device whose elements are in the pickle",
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): "a tensor of a device, held by another",
    ("numpy.core.multiarray", "_reconstruct"): "a NumPy array inside the pickle; save it as a tensor",
    ("numpy._core.multiarray", "_reconstruct"): "a NumPy array inside the pickle; save it as a tensor",
    ("torch.jit._pickle", "restore_type_tag"): "TorchScript, which is a program",
}

# What checkpoints hold beside tensors and plain data. A name is here because it was met in releases, or is
# what a widely used trainer saves; all of it is data about the training.
_HARMLESS: Mapping[str, tuple[str, ...]] = {
    "__builtin__": (
        *("set", "frozenset", "dict", "list", "tuple", "int", "float", "bool", "str", "object", "complex"),
        *("slice", "bytearray", "long", "unicode"),
    ),
    "builtins": (
        *("set", "frozenset", "dict", "list", "tuple", "int", "float", "bool", "str", "object", "complex"),
        *("slice", "bytearray", "range"),
    ),
    "collections": ("Counter", "deque"),
    "typing": ("Any",),
    "datetime": ("datetime", "date", "timedelta"),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "_codecs": ("encode",),
    "numpy": ("dtype",),
    "numpy.core.multiarray": ("scalar",),
    "numpy._core.multiarray": ("scalar",),
    "torch": ("device",),
    "argparse": ("Namespace",),
    "pytorch_lightning.callbacks.model_checkpoint": ("ModelCheckpoint",),
    "pytorch_lightning.callbacks.early_stopping": ("EarlyStopping",),
    "pytorch_lightning.callbacks.lr_monitor": ("LearningRateMonitor",),
    "pytorch_lightning.utilities.parsing": ("AttributeDict",),
    "lightning_fabric.utilities.data": ("AttributeDict",),
    "lightning.pytorch.utilities.parsing": ("AttributeDict",),
    "lightning.fabric.utilities.data": ("AttributeDict",),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.nodes": (
        *("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode", "InterpolationResultNode"),
    ),
    "deepspeed.runtime.fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
    "megatron.fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
}


def _known_names() -> Mapping[tuple[str, str], TorchObject]:
    names: dict[tuple[str, str], TorchObject] = {
        ("torch._utils", name.value): name
        for name in TorchName
        if name.value.startswith("_rebuild") and name is not TorchName.FROM_TYPE
    }
    names |= {
        ("torch._tensor", "_rebuild_from_type_v2"): TorchName.FROM_TYPE,
        ("torch", "Tensor"): TorchName.TENSOR_TYPE,
        ("torch._tensor", "Tensor"): TorchName.TENSOR_TYPE,
        ("torch.nn.parameter", "Parameter"): TorchName.TENSOR_TYPE,
        ("torch.nn.parameter", "Buffer"): TorchName.TENSOR_TYPE,
        ("torch", "Size"): TorchName.SIZE,
        ("collections", "OrderedDict"): TorchName.ORDERED_DICT,
        ("collections", "defaultdict"): TorchName.DEFAULT_DICT,
        ("torch.storage", "UntypedStorage"): StorageClass("UntypedStorage", None),
        ("torch.storage", "_UntypedStorage"): StorageClass("_UntypedStorage", None),
    }
    for module in ("torch", "torch.cuda"):
        for name, dtype in _STORAGES.items():
            names[module, name] = StorageClass(name, BY_NAME[dtype])
    names |= {("torch", name): BY_NAME[name] for name in _DTYPES}
    for module, harmless in _HARMLESS.items():
        for name in harmless:
            names[module, name] = Harmless(f"{module}.{name}")
    return MappingProxyType(names)


KNOWN = _known_names()
UNREAD: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        **_UNREAD,
        **{("torch", name): "quantised elements; dequantise them" for name in _QUANTISED_STORAGES},
        **{("torch", name): f"elements of type {name}" for name in _UNREAD_DTYPES},
    }
)


def look_up(module: str, name: str) -> TorchObject:
    """What a name stands for.

    Raises:
        Refused: for one that is not in the tables, and for what is known and not read, with the reason.
    """
    if (module, name) in UNREAD:
        raise Refused(f"{UNREAD[module, name]} ({module}.{name})")
    if (module, name) not in KNOWN:
        raise Refused(f"the name {module[:200]}.{name[:200]}")
    return KNOWN[module, name]
