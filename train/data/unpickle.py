"""L7: read a pickle of plain data and arrays of integers without running code from the file.

A pickle is a program. Unpickling calls the functions that the file names, with arguments from the file: a pickle can
delete a disk. CIFAR's files are pickles of dicts, lists, strings, integers and one array of bytes, written by Python 2,
or pickled again by Python 3 in any protocol. Three protections:

1. The program is checked before it runs. Only opcodes that build plain data are allowed, and no memo index or nesting
   that would exhaust the memory.
2. The few names by which NumPy describes an array are replaced by the stand-ins below. The file has no access to a real
   function or class: it can neither call nor subclass one, nor set an attribute.
3. The stand-ins accept only the arguments of an array of integers, or of one integer.

The result is plain data, but may be any plain data: the caller checks its contents.
"""

import io
import pickle
import pickletools
from typing import Any, ClassVar

import numpy as np

_OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "LIST", "EMPTY_LIST", "APPEND", "APPENDS", "DICT", "EMPTY_DICT", "SETITEM", "SETITEMS",
    "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip
_MAX_DEPTH = 20  # of nested tuples: an array needs 2; hashing a million nested tuples would overflow the C stack


def load_plain(data: bytes) -> Any:
    """The object in the pickle `data`. Strings that Python 2 wrote become bytes.

    Raises:
        pickle.UnpicklingError: `data` is not a pickle, is truncated, or builds more than plain data.
    """
    try:
        _inspect(data)
        return _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle raises ValueError, KeyError, EOFError, TypeError ...
        raise pickle.UnpicklingError(f"not a readable pickle ({error})") from None


def _inspect(data: bytes) -> None:
    """Check the opcodes, memo indices and nesting of a pickle, without running the pickle."""
    stack: list[int | None] = []  # as the unpickler's, with the depth of nested tuples for each object; None is a mark
    memo: dict[Any, int | None] = {}
    for instruction, argument, position in pickletools.genops(data):
        name, before = instruction.name, instruction.stack_before
        if name not in _OPCODES:
            raise pickle.UnpicklingError(f"opcode {name} at byte {position} is not allowed in plain data")
        if isinstance(argument, int) and name.endswith("PUT") and argument > len(data):  # the memo is a table
            raise pickle.UnpicklingError(f"memo index {argument} at byte {position} is larger than the file")
        inside = [0]
        if pickletools.markobject in before:  # pops the objects above the last mark, and the mark
            while (depth := stack.pop()) is not None:
                inside.append(depth)
            before = before[: before.index(pickletools.markobject)]
        inside += [stack.pop() for _ in before]  # type: ignore[misc]
        if name == "MARK":
            stack.append(None)
        elif instruction.stack_after:
            stack.append(memo[argument] if name.endswith("GET") else max(inside) + ("TUPLE" in name))
            if (stack[-1] or 0) > _MAX_DEPTH:
                raise pickle.UnpicklingError(f"more than {_MAX_DEPTH} nested tuples")
        if name.endswith("PUT") or name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = stack[-1]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> "_StandIn":
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in plain data")
        return stand_in()


class _StandIn:
    """Stands for a function or class that the file names. Has no attributes, so that the file cannot set any.

    Messages do not show the arguments: a list of lists of lists may be small in the file and endless when printed.
    """

    __slots__ = ()
    what: ClassVar[str]  # the name in messages

    def __call__(self, *arguments: Any) -> Any:
        raise pickle.UnpicklingError(f"unexpected call of {self.what}")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"unexpected state for {self.what}")


class _NdarrayType(_StandIn):
    """numpy.ndarray: an argument, never called."""

    __slots__ = ()
    what = "numpy.ndarray"


class _DtypeType(_StandIn):
    """numpy.dtype: `dtype("u1", False, True)` is uint8."""

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
    """Stands for a dtype of integers; the state in the pickle has the byte order."""

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
    """Stands for an array of integers in the file; `array` is the NumPy array."""

    __slots__ = ("array",)
    what = "numpy.ndarray"
    array: np.ndarray

    def __init__(self) -> None:
        self.array = np.empty((0, 0), np.uint8)

    def fill(self, shape: Any, dtype: Any, content: Any, fortran_order: bool) -> "IntegerArray":
        """Set the array to the bytes `content`."""
        sizes = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
        if not (sizes and isinstance(dtype, _IntegerDtype) and isinstance(content, bytes | bytearray)):
            raise pickle.UnpicklingError("an array of another type than integers")
        self.array = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if fortran_order else "C")
        return self

    def __setstate__(self, state: Any) -> None:
        match state:
            case (int(), shape, dtype, bool() | int() as fortran_order, content):
                self.fill(shape, dtype, content, bool(fortran_order))
            case _:
                raise pickle.UnpicklingError("an array of another type than integers")


class _Reconstruct(_StandIn):
    """numpy.core.multiarray._reconstruct: creates an empty array; the state of the array has its contents."""

    __slots__ = ()
    what = "numpy _reconstruct"

    def __call__(self, *arguments: Any) -> Any:
        if not (len(arguments) == 3 and isinstance(arguments[0], _NdarrayType)):
            raise pickle.UnpicklingError(f"unexpected call of {self.what}")
        return IntegerArray()


class _FromBuffer(_StandIn):
    """numpy.core.numeric._frombuffer: creates an array in one call, since protocol 5."""

    __slots__ = ()
    what = "numpy _frombuffer"

    def __call__(self, *arguments: Any) -> Any:
        match arguments:
            case (content, dtype, shape, "C" | "F" as order, *rest) if rest in ([], [None]):
                return IntegerArray().fill(shape, dtype, content, order == "F")
        raise pickle.UnpicklingError(f"unexpected call of {self.what}")


class _Scalar(_StandIn):
    """numpy.core.multiarray.scalar: a NumPy integer, which becomes a Python integer."""

    __slots__ = ()
    what = "numpy scalar"

    def __call__(self, *arguments: Any) -> int:
        match arguments:
            case (_IntegerDtype(dtype=dtype), bytes() as content) if len(content) == dtype.itemsize:
                return int(np.frombuffer(content, dtype)[0])
        raise pickle.UnpicklingError("a NumPy scalar of another type than integers")


class _Bytes(_StandIn):
    """bytes: how Python 3 writes b"" in protocols 0 to 2."""

    __slots__ = ()
    what = "bytes"

    def __call__(self, *arguments: Any) -> bytes:
        if arguments:
            raise pickle.UnpicklingError(f"unexpected call of {self.what}")
        return b""


class _Encode(_StandIn):
    """_codecs.encode: how Python 3 writes bytes in protocols 0 to 2, as a string in Latin-1."""

    __slots__ = ()
    what = "_codecs.encode"

    def __call__(self, *arguments: Any) -> bytes:
        match arguments:
            case (str(text), "latin1"):
                return text.encode("latin1")
        raise pickle.UnpicklingError(f"unexpected call of {self.what}")


def _ascii(text: str | bytes) -> str:
    """`text` as a str: Python 2 wrote strings as bytes."""
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
