"""L7: read a pickle that holds nothing but plain data and arrays of integers, and run nothing while doing so.

A pickle is a program. Loading one calls whatever functions it names, with the arguments it gives: that is how a file
can delete a disk. CIFAR comes as pickles, of dicts, lists, strings, numbers and one array of bytes, written by Python 2
or pickled again by Python 3, in any of its protocols. So three walls:

1. The program is read before it is run. Only instructions that build such data are let through, and only in amounts
   that cannot exhaust the memory.
2. The few names by which NumPy describes an array lead to the stand-ins below. No real function or class is ever in
   the hands of the file: it cannot call one, subclass one, or set an attribute of one.
3. The stand-ins take the arguments of an array of integers, or of one integer, and refuse any other.

The caller still has to look at what comes out: it is data, but it may be any data.
"""

import io
import pickle
import pickletools
from typing import Any, ClassVar

import numpy as np

_INSTRUCTIONS = {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "LIST", "EMPTY_LIST", "APPEND", "APPENDS", "DICT", "EMPTY_DICT", "SETITEM", "SETITEMS",
    "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip
_DEEPEST = 20  # tuples within each other: an array needs two; to hash a million of them would overflow the C stack


def load_plain(data: bytes) -> Any:
    """The object that `data` pickles. Strings that Python 2 wrote come out as bytes.

    Raises:
        pickle.UnpicklingError: `data` is no pickle, is cut short, or asks for anything but plain data.
    """
    try:
        _inspect(data)
        return _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged program fails in many ways: ValueError, KeyError, EOFError, TypeError ...
        raise pickle.UnpicklingError(f"not a readable pickle ({error})") from None


def _inspect(data: bytes) -> None:
    """The first wall. `stack` is the unpickler's, but holds only how many tuples are within each other in an object;
    None is a mark."""
    stack: list[int | None] = []
    memo: dict[Any, int | None] = {}
    for instruction, argument, position in pickletools.genops(data):
        name, before = instruction.name, instruction.stack_before
        if name not in _INSTRUCTIONS:
            raise pickle.UnpicklingError(f"instruction {name} at byte {position} has no place in a file of plain data")
        if (
            isinstance(argument, int) and name.endswith("PUT") and argument > len(data)
        ):  # the memo is a table as long as the largest index
            raise pickle.UnpicklingError(f"memo index {argument} at byte {position} is beyond any this file can use")
        inside = [0]
        if pickletools.markobject in before:  # what is above the last mark, and the mark
            while (depth := stack.pop()) is not None:
                inside.append(depth)
            before = before[: before.index(pickletools.markobject)]
        inside += [stack.pop() for _ in before]  # type: ignore[misc]
        if name == "MARK":
            stack.append(None)
        elif instruction.stack_after:
            stack.append(memo[argument] if name.endswith("GET") else max(inside) + ("TUPLE" in name))
            if (stack[-1] or 0) > _DEEPEST:
                raise pickle.UnpicklingError(f"more than {_DEEPEST} tuples within each other")
        if name.endswith("PUT") or name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = stack[-1]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> "_StandIn":
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of plain data needs")
        return stand_in()


class _StandIn:
    """What a name in the file stands for. It has no attributes, so the file can give it none.

    Messages never show the arguments: a list of lists of lists may be small in the file and endless in print.
    """

    __slots__ = ()
    what: ClassVar[str]

    def __call__(self, *arguments: Any) -> Any:
        raise pickle.UnpicklingError(f"unexpected call of {self.what}")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"unexpected state for {self.what}")


class _NdarrayType(_StandIn):
    """numpy.ndarray: only ever named."""

    __slots__ = ()
    what = "numpy.ndarray"


class _DtypeType(_StandIn):
    """numpy.dtype: `dtype("u1", False, True)` is unsigned bytes."""

    __slots__ = ()
    what = "numpy.dtype"

    def __call__(self, *arguments: Any) -> Any:
        match arguments:
            case (str() | bytes() as code, _, _):
                code = _ascii(code).removeprefix("|")
                if code in _INTEGERS:
                    return _IntegerDtype(code)
        raise pickle.UnpicklingError("an array of another type than integers")


_INTEGERS = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}


class _IntegerDtype(_StandIn):
    """A dtype of integers. Its state tells the byte order, which single bytes do not have."""

    __slots__ = ("dtype",)
    what = "numpy.dtype"

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        match state:
            case (int(), str() | bytes() as order, None, None, None, *_) if _ascii(order) in ("<", ">", "=", "|"):
                self.dtype = np.dtype(_ascii(order) + self.dtype.str[1:])
            case _:
                raise pickle.UnpicklingError("an array of another type than integers")


class IntegerArray(_StandIn):
    """An array in the file: `array` is NumPy's."""

    __slots__ = ("array",)
    what = "numpy.ndarray"
    array: np.ndarray

    def __init__(self) -> None:
        self.array = np.empty((0, 0), np.uint8)

    def fill(self, shape: Any, dtype: Any, content: Any, by_column: bool) -> "IntegerArray":
        """The array of these bytes, column by column (Fortran's order) or row by row."""
        sizes = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
        if not (sizes and isinstance(dtype, _IntegerDtype) and isinstance(content, bytes | bytearray)):
            raise pickle.UnpicklingError("an array of another type than integers")
        self.array = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if by_column else "C")
        return self

    def __setstate__(self, state: Any) -> None:
        match state:
            case (int(), shape, dtype, bool() | int() as by_column, content):
                self.fill(shape, dtype, content, bool(by_column))
            case _:
                raise pickle.UnpicklingError("an array of another type than integers")


class _Reconstruct(_StandIn):
    """numpy.core.multiarray._reconstruct: makes an empty array, which its state then fills."""

    __slots__ = ()
    what = "numpy _reconstruct"

    def __call__(self, *arguments: Any) -> Any:
        if not (len(arguments) == 3 and isinstance(arguments[0], _NdarrayType)):
            raise pickle.UnpicklingError(f"unexpected call of {self.what}")
        return IntegerArray()


class _FromBuffer(_StandIn):
    """numpy.core.numeric._frombuffer: makes an array in one call, since protocol 5."""

    __slots__ = ()
    what = "numpy _frombuffer"

    def __call__(self, *arguments: Any) -> Any:
        match arguments:
            case (content, dtype, shape, "C" | "F" as order, *rest) if rest in ([], [None]):
                return IntegerArray().fill(shape, dtype, content, order == "F")
        raise pickle.UnpicklingError(f"unexpected call of {self.what}")


class _Scalar(_StandIn):
    """numpy.core.multiarray.scalar: one number of an array, which becomes Python's."""

    __slots__ = ()
    what = "numpy scalar"

    def __call__(self, *arguments: Any) -> int:
        match arguments:
            case (_IntegerDtype(dtype=dtype), bytes() as content) if len(content) == dtype.itemsize:
                return int(np.frombuffer(content, dtype)[0])
        raise pickle.UnpicklingError("a number of another type than integers")


class _Bytes(_StandIn):
    """bytes: how Python 3 writes no bytes for Python 2."""

    __slots__ = ()
    what = "bytes"

    def __call__(self, *arguments: Any) -> bytes:
        if arguments:
            raise pickle.UnpicklingError(f"unexpected call of {self.what}")
        return b""


class _Encode(_StandIn):
    """_codecs.encode: how Python 3 writes bytes for Python 2, as text in Latin-1."""

    __slots__ = ()
    what = "_codecs.encode"

    def __call__(self, *arguments: Any) -> bytes:
        match arguments:
            case (str(text), "latin1"):
                return text.encode("latin1")
        raise pickle.UnpicklingError(f"unexpected call of {self.what}")


def _ascii(text: str | bytes) -> str:
    """Python 2 wrote strings as bytes."""
    return text.decode("latin1") if isinstance(text, bytes) else text


_STAND_INS: dict[tuple[str, str], type[_StandIn]] = {
    ("numpy", "ndarray"): _NdarrayType,
    ("numpy", "dtype"): _DtypeType,
    ("_codecs", "encode"): _Encode,
    ("__builtin__", "bytes"): _Bytes,
    ("builtins", "bytes"): _Bytes,
}
for _core in ("numpy.core", "numpy._core"):  # the second since NumPy 2
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = _Reconstruct
    _STAND_INS[f"{_core}.multiarray", "scalar"] = _Scalar
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _FromBuffer
