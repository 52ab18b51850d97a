"""A symbolic stack machine for pickles of arrays: it imports nothing, calls nothing and makes nothing.

Every opcode moves plain values on a stack, as the unpickler would; what would import, call or make is
decided by a `Meaning`, which knows the few names and calls that arrays consist of (`pickle_values`, and
`torch_values` for torch's own). At STOP one object is left, a tree whose leaves are arrays; `pickle_tree`
walks it.
"""

from __future__ import annotations

from collections.abc import Callable

from gdist.core.tensor import FoundArray
from gdist.errors import CorruptError, UnsupportedError
from gdist.formats import pickle_values
from gdist.formats.pickle_lexer import Token, opcode_name
from gdist.formats.pickle_tree import MAX_DEPTH, Meaning, arrays_in
from gdist.formats.pickle_values import Impossible, Opaque, Refused, kind_of

MAX_OPCODES = 1 << 22  # enough for about 100,000 arrays in one file
MAX_MEMO = 1 << 21  # entries
MAX_STACK = 1 << 17  # values
HINT = "gdist reads arrays, and trees of them, and runs nothing; convert the file where you trust it"


class Machine:
    """Takes the tokens of one pickle in order, until `stopped`."""

    def __init__(self, meaning: Meaning = pickle_values) -> None:
        self.stopped = False
        self.stop_offset = 0  # where the file goes on behind the pickle; set by whoever drives
        self.meaning = meaning
        self._stack: list[object] = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: dict[int, object] = {}
        self._count = 0

    def step(self, token: Token) -> None:
        """Runs one token.

        Raises:
            UnsupportedError: for a name, a call or a size that is not allowed.
            CorruptError: for a stack, memo or value that no pickler leaves.
        """
        try:
            self._run(token)
        except Refused as refused:
            what = f"the pickle has {refused}, which is not read"
            raise UnsupportedError(f"{what} ({_where(token)})", hint=HINT, offset=token.offset) from None
        except Impossible as impossible:
            what = f"the pickle contradicts itself: {impossible}"
            raise CorruptError(f"{what} ({_where(token)})", offset=token.offset) from None

    @property
    def root(self) -> object:
        """The one object left."""
        assert self.stopped, "the pickle has not been read to its end"
        return self._stack[0]

    def found(self) -> tuple[FoundArray, ...]:
        """The arrays of the object left, in the order of its tree; a key is the path to it joined by `.`.

        Raises:
            UnsupportedError: for a tree that is too deep, shares a container or an array, or holds something
                that is neither an array, a container nor plain data.
        """
        try:
            return arrays_in(self.root, self.meaning)
        except Refused as refused:
            raise UnsupportedError(f"the pickle has {refused}, which is not read", hint=HINT) from None

    def _run(self, token: Token) -> None:
        self._count += 1
        if self._count > MAX_OPCODES:
            raise Refused(f"more than {MAX_OPCODES} opcodes")
        _HANDLERS[token.opcode](self, token.argument)
        if len(self._stack) > MAX_STACK or len(self._marks) > MAX_DEPTH or len(self._memo) > MAX_MEMO:
            raise Refused(f"more than {MAX_STACK} values, {MAX_DEPTH} marks or {MAX_MEMO} memo entries")

    def top(self) -> object:
        """The value on top of the stack, above the last mark."""
        if len(self._stack) == (self._marks[-1] if self._marks else 0):
            raise Impossible("the stack is empty")
        return self._stack[-1]

    def pop(self) -> object:
        """Takes the value on top of the stack."""
        value = self.top()
        self._stack.pop()
        return value

    def pop_few(self, count: int) -> tuple[object, ...]:
        """Takes the top values, deepest first."""
        return tuple([self.pop() for _ in range(count)][::-1])

    def pop_mark(self) -> tuple[object, ...]:
        """Takes what lies above the last mark, and the mark."""
        if not self._marks:
            raise Impossible("no mark on the stack")
        start = self._marks.pop()
        items = tuple(self._stack[start:])
        del self._stack[start:]
        return items

    def push(self, value: object) -> None:
        """Puts a value on the stack."""
        self._stack.append(value)

    def mark(self) -> None:
        """Remembers the height of the stack."""
        self._marks.append(len(self._stack))

    def put(self, index: object | None) -> None:
        """Memoises the value on top, as `index` or as the next one."""
        self._memo[len(self._memo) if index is None else _integer(index)] = self.top()

    def get(self, index: object) -> None:
        """Puts a memoised value on the stack."""
        if index not in self._memo:
            raise Impossible(f"nothing was memoised as {index}")
        self.push(self._memo[_integer(index)])

    def extend(self, items: tuple[object, ...]) -> None:
        """Appends to the list on top."""
        target = self.top()
        if isinstance(target, Opaque):
            target.content.extend(items)
            return
        if type(target) is not list:
            raise Refused(f"items for {kind_of(target)}")
        target.extend(items)

    def update(self, items: tuple[object, ...]) -> None:
        """Sets keys, each followed by its value, of the dict on top."""
        target = self.top()
        if isinstance(target, Opaque):
            target = target.items
        if type(target) is not dict:
            raise Refused(f"keys for {kind_of(target)}")
        if len(items) % 2:
            raise Impossible("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not self.meaning.is_key(key):
                raise Refused(f"a dict key that is {kind_of(key)}")
            if key in target:
                raise Refused(f"the dict key {key!r} twice")
            target[key] = value

    def push_name(self, module: object, name: object) -> None:
        """Puts an allowed name on the stack."""
        if type(module) is not str or type(name) is not str:
            raise Refused(f"a name made of {kind_of(module)} and {kind_of(name)}")
        self.push(self.meaning.look_up(module, name))

    def build(self) -> None:
        """Gives the value below the top its state."""
        state = self.pop()
        self.meaning.build(self.top(), state)

    def stop(self) -> None:
        """Ends the pickle."""
        if len(self._stack) != 1 or self._marks:
            raise Impossible(f"{len(self._stack)} objects are left, not one")
        self.stopped = True


def _where(token: Token) -> str:
    return f"at {opcode_name(token.opcode)}, offset {token.offset}"


def _integer(value: object) -> int:
    assert isinstance(value, int), f"argument {value!r}"
    return value


def _pair(value: object) -> tuple[object, object]:
    assert isinstance(value, tuple) and len(value) == 2, f"argument {value!r}"
    return value


_HANDLERS: dict[int, Callable[[Machine, object], None]] = {
    0x80: lambda m, _: None,  # PROTO
    0x95: lambda m, _: None,  # FRAME
    ord("."): lambda m, _: m.stop(),
    ord("("): lambda m, _: m.mark(),
    0x94: lambda m, _: m.put(None),  # MEMOIZE
    **dict.fromkeys(b"qr", lambda m, index: m.put(index)),
    **dict.fromkeys(b"hj", lambda m, index: m.get(index)),
    ord("N"): lambda m, _: m.push(None),
    0x88: lambda m, _: m.push(True),
    0x89: lambda m, _: m.push(False),
    # numbers, texts, and payloads as their extents
    **dict.fromkeys(b"JKMG\x8a\x8cXUTCB\x8e\x96", lambda m, value: m.push(value)),
    ord(")"): lambda m, _: m.push(()),
    0x85: lambda m, _: m.push(m.pop_few(1)),
    0x86: lambda m, _: m.push(m.pop_few(2)),
    0x87: lambda m, _: m.push(m.pop_few(3)),
    ord("t"): lambda m, _: m.push(m.pop_mark()),
    ord("}"): lambda m, _: m.push({}),
    ord("s"): lambda m, _: m.update(m.pop_few(2)),
    ord("u"): lambda m, _: m.update(m.pop_mark()),
    ord("]"): lambda m, _: m.push([]),
    ord("a"): lambda m, _: m.extend(m.pop_few(1)),
    ord("e"): lambda m, _: m.extend(m.pop_mark()),
    ord("c"): lambda m, names: m.push_name(*_pair(names)),
    0x93: lambda m, _: m.push_name(*m.pop_few(2)),  # STACK_GLOBAL
    ord("R"): lambda m, _: m.push(m.meaning.call(*m.pop_few(2))),
    0x81: lambda m, _: m.push(m.meaning.new_object(*m.pop_few(2))),  # NEWOBJ
    ord("Q"): lambda m, _: m.push(m.meaning.persistent(m.pop())),  # BINPERSID
    ord("b"): lambda m, _: m.build(),
}
