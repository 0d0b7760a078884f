"""CUDA kernels on NumPy arrays: compiled by g++ with `cuda_on_cpu.h`, called through ctypes.

    with emulated(order="shuffled"):
        y = F.layer_norm(Tensor(x), C)  # float32: runs the CUDA fast path and its kernels

`CpuDevice` is a device for `minigrad.kernels.cuda.launch`. `emulated` makes a `CpuDevice` the current device, puts
CUDA fast paths before CPU fast paths, and fills the arrays of `numpy.empty` with NaN.
"""

import ctypes
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from minigrad.backend.cublas import pointer
from minigrad.backend.fast_paths import FAST_PATHS
from minigrad.kernels.cuda.launch import FOLDER, Dim3, Kernel, Launch, Recorder, use_device

FOLDERS = (FOLDER, FOLDER.parents[2] / "train" / "data" / "cuda")  # of CUDA sources
ORDERS = ("round robin", "first warp ahead", "last warp ahead", "shuffled")
HEADER = Path(__file__).with_name("cuda_on_cpu.h")
CACHE = Path(tempfile.gettempdir()) / f"minigrad-cuda-on-cpu-{os.getuid() if hasattr(os, 'getuid') else 0}"
CHECKS = "alignment,bounds,integer-divide-by-zero,shift,signed-integer-overflow"
OPTIONS = [
    "-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-fno-strict-aliasing",
    "-ffp-contract=off", f"-fsanitize={CHECKS}", "-fsanitize-undefined-trap-on-error", "-Wno-unknown-pragmas",
]  # fmt: skip

HAS_COMPILER = sys.platform.startswith("linux") and shutil.which("g++") is not None
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="kernels run on the CPU need Linux and g++")


def sampled(values: Sequence[Any]) -> list[Any]:
    """Values for a parameter of a test, all but the first of them only in an exhaustive run."""
    return [*values[:1], *(pytest.param(value, marks=pytest.mark.exhaustive) for value in values[1:])]


class KernelError(RuntimeError):
    """A kernel accessed memory out of bounds, deadlocked at a barrier, or does not compile."""


class CpuDevice:
    """A device whose arrays are NumPy arrays.

    Args:
        order: the order in which the threads of a block run, one of `ORDERS`. A correct kernel has the same result in
            every order.
        barrier: a barrier of `barriers(file)` to delete, such as "norm.cu:120"; a test should then fail.
        array: the class of the device's arrays: numpy.ndarray, or a class with `data.ptr`, `dtype` and `flags`.
        macros: further compiler options.
    """

    def __init__(
        self, order: str = ORDERS[0], *,
        barrier: str | None = None, array: type = np.ndarray, macros: Sequence[str] = (),
    ) -> None:  # fmt: skip
        if order not in ORDERS:
            raise ValueError(f"order must be one of {ORDERS}, got {order!r}")
        self.order, self.barrier, self.array, self.macros = ORDERS.index(order), barrier, array, tuple(macros)

    def owns(self, x: Any) -> bool:
        return isinstance(x, self.array)

    def launch(self, kernel: Kernel, grid: Dim3, block: Dim3, args: Sequence[Any], shared: int) -> None:
        library = _library(kernel.path, (*kernel.macros, *self.macros))
        try:
            run, signature = library[f"run_{kernel.name}"], library[f"signature_{kernel.name}"]
        except AttributeError:
            raise KernelError(f'{kernel.file} has no kernel `extern "C" __global__ void {kernel.name}(`') from None
        signature.restype = run.restype = ctypes.c_char_p
        values = _checked(kernel, signature().decode().split(), args)
        where = _Launch((*grid,), (*block,), shared, self.order, None, 0)
        if self.barrier is not None:
            file, line = self.barrier.rsplit(":", 1)
            where.left_out_in, where.left_out_at = file.encode(), int(line)
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        with _one_at_a_time:
            wrong = run(ctypes.byref(where), pointers)
            if wrong:
                library.cuda_on_cpu_fault.restype = ctypes.c_size_t
                where_to = _neighbour(library.cuda_on_cpu_fault(), args) if b"out of bounds" in wrong else ""
                raise KernelError(f"{kernel.name}: {wrong.decode()}{where_to}")


_one_at_a_time = Lock()  # a library has one set of fibers


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_size_t), ("order", ctypes.c_int),
        ("left_out_in", ctypes.c_char_p), ("left_out_at", ctypes.c_int),
    )  # fmt: skip


def _checked(kernel: Kernel, parameters: Sequence[str], args: Sequence[Any]) -> list[np.ndarray]:
    """Check the arguments against the kernel's parameters. Returns 0-d arrays: values, and addresses of arrays."""
    if len(parameters) != len(args):
        raise TypeError(f"{kernel.name} has {len(parameters)} parameters, got {len(args)} arguments")
    values = []
    for i, (parameter, arg) in enumerate(zip(parameters, args, strict=True)):
        wanted, constant = parameter.lstrip("*c"), "c" in parameter
        kind = "" if arg is None else f"{'B' if arg.dtype.name == 'bfloat16' else arg.dtype.kind}{arg.dtype.itemsize}"
        scalar = isinstance(arg, np.generic)
        if scalar == ("*" in parameter) or (arg is None and scalar) or not (arg is None or _fits(kind, wanted, scalar)):
            raise TypeError(
                f"{kernel.name}: parameter {i} is {parameter!r} (dtype kind and bytes; * is a pointer), "
                f"got {type(arg).__name__} {kind!r}"
            )
        if not (arg is None or scalar or constant or getattr(arg.flags, "writeable", True)):
            raise TypeError(f"{kernel.name}: parameter {i} is not a pointer to const, got a read-only array")
        values.append(np.array(arg) if scalar else np.array(0 if arg is None else pointer(arg), np.uint64))
    return values


def _fits(kind: str, wanted: str, scalar: bool) -> bool:
    """Pointers to vectors and void match every dtype; a pointer to bfloat16 matches uint16 too."""
    return kind == wanted or (not scalar and (wanted[0] == "V" or (wanted, kind) == ("B2", "u2")))


def _neighbour(address: int, args: Sequence[Any]) -> str:
    """Describe a faulting address by its distance from the nearest array argument."""
    for i, arg in enumerate(args):
        if arg is None or isinstance(arg, np.generic):
            continue
        start = pointer(arg)
        end, near = start + arg.nbytes, mmap.PAGESIZE
        if end <= address < end + near:
            return f", {address - end} bytes past the end of argument {i}"
        if start - near <= address < start:
            return f", {start - address} bytes before argument {i}"
    return f", address {address:#x}"


# Compiling ----------------------------------------------------------------------------------------------------------


def _texts(path: Path) -> dict[Path, str]:
    """A source file and the files that it includes by #include "...", in the order of inclusion."""
    text = path.read_text(encoding="utf-8")
    found: dict[Path, str] = {}
    for name in re.findall(r'^#include "(.+)"', text, re.MULTILINE):
        beside = path.with_name(name)
        found |= _texts(beside if beside.exists() else FOLDER / name)
    return {**found, path: text}


def kernels(path: Path) -> list[str]:
    """The names of the kernels in one source file."""
    pattern = r'extern "C" __global__ void(?:\s+__launch_bounds__\(.*\))?\s+(\w+)\('
    return re.findall(pattern, path.read_text(encoding="utf-8"))


def barriers(file: str) -> list[str]:
    """The lines of barriers of a block or a warp in a source and its headers: ["common.cuh:34", ...]."""
    return [
        f"{path.name}:{number}"
        for path, text in _texts(FOLDER / file).items()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(r"__sync(threads|warp)\(", line.split("//")[0])
    ]


@cache
def _library(path: Path, macros: tuple[str, ...]) -> ctypes.CDLL:
    """The source as a shared library, compiled or from the cache."""
    texts = _texts(path)
    exports = [f"EXPORT_KERNEL({name})" for text in texts for name in kernels(text)]
    unit = "\n".join([f'#include "{HEADER}"', f'#include "{path}"', *exports, ""])
    command = ["g++", *OPTIONS, f"-I{FOLDER}", *macros]
    key = sha256("\0".join([*command, _compiler(), unit, HEADER.read_text(), *texts.values()]).encode()).hexdigest()
    CACHE.mkdir(mode=0o700, exist_ok=True)
    if CACHE.stat().st_uid != os.getuid():
        raise PermissionError(f"{CACHE} belongs to another user, so its libraries are not loaded: remove the folder")
    library = CACHE / f"{key[:32]}.so"
    if not library.exists():
        unfinished = library.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [*command, "-x", "c++", "-", "-o", unfinished], input=unit, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise KernelError(f"g++ refuses {path.name}:\n{done.stderr}")
        unfinished.replace(library)
    return ctypes.CDLL(str(library))


@cache
def _compiler() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


# Arrays that reveal errors ------------------------------------------------------------------------------------------


def poisoned(shape: int | Sequence[int], dtype: Any = np.float32) -> np.ndarray:
    """An array of NaN (integers: -1), which shows the elements that a kernel does not write."""
    array = np.zeros(shape, dtype)
    array.reshape(-1).view(np.uint8)[...] = 0xFF
    return array


def guarded(
    shape: int | Sequence[int], dtype: Any = np.float32, side: str = "after", *, aligned: int = 1
) -> np.ndarray:
    """A poisoned array with a protected page after its end or before its beginning.

    For an alignment of `aligned` bytes, up to aligned - 1 unprotected bytes follow the end of the array.
    """
    if side not in ("after", "before"):
        raise ValueError(f'side must be "after" or "before", got {side!r}')
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size, page = prod(shape) * np.dtype(dtype).itemsize, mmap.PAGESIZE
    room = max(-(-size // page), 1) * page
    memory = mmap.mmap(-1, room + page)
    start = np.frombuffer(memory, np.uint8).ctypes.data
    guard, first = (room, room - -(-size // aligned) * aligned) if side == "after" else (0, page)
    _protect(start + guard, page)
    array = np.frombuffer(memory, dtype, prod(shape), first).reshape(shape)
    array.reshape(-1).view(np.uint8)[...] = 0xFF
    return array


def _protect(address: int, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), 0):
        raise OSError(ctypes.get_errno(), "mprotect")


@contextmanager
def emulated(order: str = ORDERS[0], *, barrier: str | None = None, guard: str | None = None) -> Iterator[CpuDevice]:
    """Within the block, CUDA fast paths run on NumPy arrays.

    Args:
        order, barrier: as for `CpuDevice`.
        guard: the side of arrays from `numpy.empty` and `empty_like` that is protected to the byte, "after" or
            "before". By default these arrays are aligned to 16 bytes, as on a GPU, with a protected page less than 16
            bytes after their end, so a kernel cannot overwrite Python's memory.
    """
    device = CpuDevice(order, barrier=barrier)

    def empty(shape: Any, dtype: Any = np.float64, **options: Any) -> np.ndarray:
        return guarded(shape, dtype, aligned=16) if guard is None else guarded(shape, dtype, guard)

    as_numpy_does = np.empty_like

    def empty_like(x: Any, dtype: Any = None, *, shape: Any = None, **options: Any) -> np.ndarray:
        like = as_numpy_does(x, dtype, shape=shape, **options)
        order = sorted(range(like.ndim), key=lambda axis: -like.strides[axis])  # axes by decreasing stride
        made = empty([like.shape[axis] for axis in order], like.dtype)
        return made.transpose([order.index(axis) for axis in range(like.ndim)])

    before = dict(FAST_PATHS)
    for op, paths in before.items():
        FAST_PATHS[op] = tuple(sorted(paths, key=lambda path: ".cuda." not in path.__module__))
    try:
        with use_device(device), patch.object(np, "empty", empty), patch.object(np, "empty_like", empty_like):
            yield device
    finally:
        FAST_PATHS.update(before)


@contextmanager
def recorded(order: str = ORDERS[0], **options: Any) -> Iterator[list[Launch]]:
    """`emulated`, with the list of the launches within the block."""
    with emulated(order, **options) as device, use_device(recorder := Recorder(device)):
        yield recorder.launches
