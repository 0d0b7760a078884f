"""Pickles for the tests: valid pickles, byte for byte in CIFAR's Python 2 format, and hostile pickles."""

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np


def py2_string(text: bytes) -> bytes:
    """A Python 2 string: SHORT_BINSTRING, or BINSTRING above 255 bytes."""
    return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text


def py2_list(items: list[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


def py2_labels(labels: Any) -> bytes:
    return py2_list([b"K" + bytes([int(label)]) for label in labels])


def py2_array(data: np.ndarray, dtype: bytes = b"u1", shape: tuple[int, int] | None = None) -> bytes:
    """numpy.core.multiarray._reconstruct(numpy.ndarray, (0,), "b"), then its state."""
    rows, columns = shape or data.shape
    code = b"cnumpy\ndtype\n" + py2_string(dtype) + b"K\x00K\x01\x87R(K\x03" + py2_string(b"|") + b"NNN"
    code += b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + py2_string(b"b") + b"\x87R(K\x01"
    size = b"J" + struct.pack("<i", rows) + b"J" + struct.pack("<i", columns) + b"\x86"
    return start + size + code + b"\x89" + py2_string(data.tobytes()) + b"tb"


def py2_dict(**items: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(py2_string(key.encode()) + value for key, value in items.items()) + b"u."


def batch(images: np.ndarray, labels: Any, key: str = "labels") -> bytes:
    """The content of a CIFAR file with the images (N, 3072)."""
    return py2_dict(batch_label=py2_string(b"testing"), **{key: py2_labels(labels)}, data=py2_array(images))


def write_cifar10(folder: Path, per_batch: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """A tiny CIFAR-10 in `folder`. Returns all training images (N, 3072) and labels."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    images = rng.integers(0, 256, (6 * per_batch, 3072), dtype=np.uint8)
    labels = rng.integers(0, 10, 6 * per_batch)
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        part = slice(i * per_batch, (i + 1) * per_batch)
        (folder / name).write_bytes(batch(images[part], labels[part]))
    names = [py2_string(name) for name in b"airplane automobile bird cat deer dog frog horse ship truck".split()]
    (folder / "batches.meta").write_bytes(py2_dict(label_names=py2_list(names)))
    return images[: 5 * per_batch], labels[: 5 * per_batch]


def doubled_lists(depth: int) -> bytes:
    """[x, x] where x is [y, y] where y is ...: small in memory, 2**depth items in its repr."""
    code = b"]q\x00"
    for i in range(depth):
        code += b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1])
    return code


class _Call:
    """An object whose pickle calls a function when loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def hostile(proof: Path) -> dict[str, bytes]:
    """By name, pickles that would create the file `proof`, or change this process or exhaust its memory."""
    touch = f"open({str(proof)!r}, 'w').close()".encode()
    array = py2_array(np.zeros((1, 3072), np.uint8))
    opened = b"cbuiltins\nexec\n(" + py2_string(touch) + b"tR."
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n"
    scalar = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n"
    frombuffer = b"cnumpy.core.numeric\n_frombuffer\n(" + py2_string(b"") + b"cnumpy\ndtype\n(" + py2_string(b"u1")
    frombuffer = b"\x80\x02" + frombuffer + b"I00\nI01\ntRK\x00\x85X\x01\0\0\0CtR."  # a valid pickle
    return {
        "exec": pickle.dumps(_Call(exec, touch.decode())),
        "exec in protocol 0": pickle.dumps(_Call(exec, touch.decode()), 0),
        "exec in protocol 4": pickle.dumps(_Call(exec, touch.decode()), 4),
        "exec by hand": b"\x80\x02" + opened,
        "exec inside an honest dict": py2_dict(labels=py2_labels([1]), data=array, more=opened[:-1]),
        "exec by INST": b"(S'" + touch.replace(b"'", b'"') + b"'\nibuiltins\nexec\n.",
        "exec by OBJ": b"(cbuiltins\nexec\nS'" + touch.replace(b"'", b'"') + b"'\no.",
        "os.system": b"cos\nsystem\n(S'touch " + str(proof).encode() + b"'\ntR.",
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93.",
        "numpy.load with pickles": b"cnumpy\nload\n(S'" + str(proof).encode() + b"'\ntR.",
        "numpy.memmap": b"cnumpy\nmemmap\n(S'" + str(proof).encode() + b"'\nS'u1'\nS'w+'\ntR.",
        "array of objects": py2_dict(labels=py2_labels([0]), data=py2_array(np.zeros((1, 3072), np.uint8), b"O8")),
        "dtype with a field": b"cnumpy\ndtype\n(](U\x01aU\x02O8\x86eK\x00K\x01tR.",
        "another class than ndarray": reconstruct + b"(cnumpy\ndtype\nK\x00\x85U\x01btR.",
        "negative sizes": py2_dict(data=py2_array(np.zeros((1, 3072), np.uint8), shape=(-1, -3072))),
        "larger than its bytes": py2_dict(data=py2_array(np.zeros((1, 3072), np.uint8), shape=(1 << 30, 3072))),
        "array without dtype": reconstruct + b"(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I1\nI1\ntNI00\nU\x01xtb.",
        "attributes for a function": reconstruct + b"}S'__defaults__'\nNsb.",
        "attributes for a class": b"cnumpy\nndarray\n}S'x'\nNsb.",
        "slots for a function": reconstruct + b"N}S'x'\nNs\x86b.",
        "a codec by name": b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
        "persistent id": b"Pfile\n.",
        "copyreg extension": b"\x80\x02\x82\x01.",
        "a memo of 1 GB": b"\x80\x02Nr\xff\xff\xff\x03.",
        "a string of 2 GB": b"\x80\x02T\xff\xff\xff\x7fabc.",
        "a buffer of objects": frombuffer.replace(b"U\x02u1", b"U\x02O8"),
        "a buffer in another order": frombuffer.replace(b"CtR", b"KtR"),
        "a buffer with negative sizes": frombuffer.replace(b"K\x00\x85", b"J\xff\xff\xff\xff\x85"),
        "a buffer smaller than its array": frombuffer.replace(b"K\x00\x85", b"J\xff\xff\xff\x7f\x85"),
        "a buffer from elsewhere": b"\x80\x05cnumpy.core.numeric\n_frombuffer\n(\x97" + frombuffer[-40:],
        "a number of objects": scalar + b"(U\x02O8I00\nI01\ntRU\x08" + bytes(8) + b"tR.",
        "a number cut short": scalar + b"(U\x02i8I00\nI01\ntRU\x01xtR.",
        "two gigabytes of zeros": b"\x80\x03cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.",
        "tuples nested by the memo": b"\x80\x02})q\x00" + b"h\x00\x85q\x00" * 100_000 + b"K\x01s.",
        "a million nested tuples": b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.",
        "nested lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "endless in print": b"\x80\x02" + reconstruct + b"(" + doubled_lists(100) + b"tR.",
    }  # fmt: skip
