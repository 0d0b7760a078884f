"""L7: read a pickle that holds nothing but plain data and byte arrays, and run nothing while doing so.

A pickle is a program. Loading one calls whatever functions it names, with the arguments it gives: that is how a file
can delete a disk. CIFAR comes as pickles, of dicts, lists, strings, numbers and one array of bytes. So three walls:

1. The program is read before it is run. Only instructions that build such data are let through, and only in amounts
   that cannot exhaust the memory.
2. The few names by which NumPy describes an array lead to the stand-ins below. No real function or class is ever in
   the hands of the file: it cannot call one, subclass one, or set an attribute of one.
3. The stand-ins take the arguments of a two-dimensional array of bytes and refuse any other.

The caller still has to look at what comes out: it is data, but it may be any data.
"""

import io
import pickle
import pickletools
from typing import Any, ClassVar

import numpy as np

_INSTRUCTIONS = {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "LIST", "EMPTY_LIST", "APPEND", "APPENDS", "DICT", "EMPTY_DICT", "SETITEM", "SETITEMS",
    "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip
_MOST_TUPLES = 100  # an array needs about five; a million nested ones would overflow the C stack


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
    """The first wall."""
    tuples = 0
    for instruction, argument, position in pickletools.genops(data):
        name = instruction.name
        if name not in _INSTRUCTIONS:
            raise pickle.UnpicklingError(f"instruction {name} at byte {position} has no place in a file of plain data")
        if (
            isinstance(argument, int) and name.endswith("PUT") and argument > len(data)
        ):  # the memo is a table as long as the largest index
            raise pickle.UnpicklingError(f"memo index {argument} at byte {position} is beyond any this file can use")
        tuples += "TUPLE" in name
        if tuples > _MOST_TUPLES:
            raise pickle.UnpicklingError(f"more than {_MOST_TUPLES} tuples")


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
        if len(arguments) != 3 or arguments[0] not in ("u1", b"u1", "|u1", b"|u1"):
            raise pickle.UnpicklingError("an array of another type than unsigned bytes")
        return _ByteDtype()


class _ByteDtype(_StandIn):
    """A dtype of unsigned bytes. Its state tells byte order and alignment, which bytes do not have."""

    __slots__ = ()
    what = "numpy.dtype"

    def __setstate__(self, state: Any) -> None:
        pass


class _Reconstruct(_StandIn):
    """numpy.core.multiarray._reconstruct: makes an empty array, which its state then fills."""

    __slots__ = ()
    what = "numpy _reconstruct"

    def __call__(self, *arguments: Any) -> Any:
        if not (len(arguments) == 3 and isinstance(arguments[0], _NdarrayType)):
            raise pickle.UnpicklingError(f"unexpected call of {self.what}")
        return ByteArray()


class ByteArray(_StandIn):
    """An array in the file: `array` is uint8 of two axes."""

    __slots__ = ("array",)
    what = "numpy.ndarray"
    array: np.ndarray

    def __init__(self) -> None:
        self.array = np.empty((0, 0), np.uint8)

    def __setstate__(self, state: Any) -> None:
        match state:
            case (int(), (int(rows), int(columns)), _ByteDtype(), bool(by_column), bytes(content)):
                flat = np.frombuffer(content, np.uint8)
                self.array = flat.reshape(rows, columns, order="F" if by_column else "C")
            case _:
                raise pickle.UnpicklingError("an array that is not of two axes of bytes")


class _Encode(_StandIn):
    """_codecs.encode: how Python 3 writes bytes for Python 2, as text in Latin-1."""

    __slots__ = ()
    what = "_codecs.encode"

    def __call__(self, *arguments: Any) -> bytes:
        match arguments:
            case (str(text), "latin1"):
                return text.encode("latin1")
        raise pickle.UnpicklingError(f"unexpected call of {self.what}")


_STAND_INS: dict[tuple[str, str], type[_StandIn]] = {
    ("numpy", "ndarray"): _NdarrayType,
    ("numpy", "dtype"): _DtypeType,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,  # as NumPy 2 writes it
    ("_codecs", "encode"): _Encode,
}
