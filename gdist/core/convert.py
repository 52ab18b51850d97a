"""Tensors made on the way: quantised pairs dequantised, floating types cast, copies compared or averaged.

    NAME.weight  int8      (8, 768, 64) ─┐
                                         ├─ product in float32, rounded once ─▶  NAME  bfloat16 (8, 768, 64)
    NAME.scales  bfloat16  (8,   8, 64) ─┘  one scale for 96 rows: ratio (1, 96, 1)

What is made has the name and shape that rules and grids go by, and `factors`, in which planner and placer
find its bytes. The factors of a shard wait as they are stored, one after the other, in one file (`staging`),
until all their bytes are there; then the shard is made of them, block by block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gdist.core.dtypes import BY_NAME, DType
from gdist.core.grid import ShardGrid
from gdist.core.layout import CACHE_LINE, ShardLayout
from gdist.core.plan import HostPlan, ShardTask, TensorPlan
from gdist.core.profile import check_names, listed
from gdist.core.tensor import Factor, StoredTensor, TensorSpec
from gdist.errors import RequestError

DTYPES = ("bfloat16", "float16", "float32")
MOST_WAITING = 16  # shards that wait at a time, at a guess: pieces come about in loading order
MOST_AT_WORK = 2  # shards that are being made, each beside what it is made of


def parse_dtype(name: str) -> DType:
    """The type to convert to.

    Raises:
        RequestError: when it is none of `DTYPES`.
    """
    if name not in DTYPES:
        raise RequestError(f"dtype {name!r} is none of {', '.join(DTYPES)}", dtype=name)
    return BY_NAME[name]


def converted(tensors: Iterable[StoredTensor], dtype: DType) -> tuple[StoredTensor, ...]:
    """The tensors with all floating numbers in one type, in the same order.

    A quantised pair becomes one tensor of its name, in its weight's place. A floating tensor of another type
    is cast. All others stay: integers that are not quantised, bool, complex.

    Raises:
        RequestError: for half a pair, and for a pair's name that another tensor has.
    """
    tensors = tuple(tensors)
    pairs: dict[str, dict[str, StoredTensor]] = {}
    for tensor in tensors:
        if tensor.quantisation:
            pairs.setdefault(tensor.quantisation.pair, {})[tensor.quantisation.role] = tensor
    halves = [t.spec.name for pair in pairs.values() if len(pair) < 2 for t in pair.values()]
    if halves:
        raise RequestError(
            f"tensors cannot be dequantised without their other half: {listed(halves)}",
            hint="take both weight and scales, or keep the types as they are",
        )
    made = [
        _product(t, pairs[t.quantisation.pair]["scales"], dtype) if t.quantisation else _cast(t, dtype)
        for t in tensors
        if not t.quantisation or t.quantisation.role == "weight"
    ]
    names = [tensor.spec.name for tensor in made]
    twice = sorted(pairs.keys() & {t.spec.name for t in tensors})
    if twice:
        raise RequestError(f"dequantised pairs would have the names of other tensors: {listed(twice)}")
    check_names(names)
    return tuple(made)


def _product(weight: StoredTensor, scales: StoredTensor, dtype: DType) -> StoredTensor:
    shape = weight.spec.shape
    ratio = tuple(a // b if b else 1 for a, b in zip(shape, scales.spec.shape, strict=True))
    factors = (Factor(weight), Factor(scales, ratio if set(ratio) != {1} else ()))
    return StoredTensor(TensorSpec(weight.rule_name, shape, dtype), (), factors=factors)


def _cast(tensor: StoredTensor, dtype: DType) -> StoredTensor:
    spec = tensor.spec
    if tensor.factors and spec.dtype.name.startswith(("float", "bfloat")):
        return replace(tensor, spec=TensorSpec(spec.name, spec.shape, dtype))
    if spec.dtype == dtype or not spec.dtype.name.startswith(("float", "bfloat")):
        return tensor
    return StoredTensor(TensorSpec(spec.name, spec.shape, dtype), (), factors=(Factor(tensor),))


def staging(plan: TensorPlan, task: ShardTask) -> tuple[tuple[int, ShardLayout], ...]:
    """Where the factors of one shard lie while they wait: the start of each in their file, and its layout.

    What goes element by element is cut as the shard is, so that a chunk is made of a chunk; the rest is one.
    """
    found, start = [], 0
    for factor in plan.tensor.factors:
        grid = plan.grid
        if factor.ratio:
            shape = factor.box_for(task.box).shape
            grid = ShardGrid(shape, shape, shape, shape)
        layout = ShardLayout(grid, factor.tensor.spec.dtype.itemsize)
        found.append((start, layout))
        start += -(-layout.file_nbytes // CACHE_LINE) * CACHE_LINE
    return tuple(found)


def staged_nbytes(plan: TensorPlan, task: ShardTask) -> int:
    """Bytes of the file in which a shard's factors wait; 0 for a shard that is stored as it comes."""
    places = staging(plan, task)
    return places[-1][0] + places[-1][1].file_nbytes if places else 0


def disk_for_staging(plan: HostPlan) -> int:
    """Bytes of disk that conversion takes beside the store: shards that wait, or are at work, at a time.

    A shard that waits has no place in the store yet, so only what it is larger there than here counts.
    """
    waiting, working = [], []
    for tensor in plan.tensors:
        for task in tensor.shards[:MOST_WAITING] if tensor.tensor.factors else ():
            staged = staged_nbytes(tensor, task)
            waiting.append(max(staged - tensor.layout().file_nbytes, 0))
            working.append(staged)
    return sum(sorted(waiting)[-MOST_WAITING:]) + sum(sorted(working)[-MOST_AT_WORK:])
