"""L1: the gate to kernels written in CUDA: what a kernel is, and who carries out a launch.

    forward = Kernel("norm.cu", "layer_norm_forward", COLUMNS=192)
    forward((rows,), (32, 8), x, y, np.int32(rows), np.float32(eps))

A `Kernel` names a function in a source file of this folder, and the constants it is compiled with. Calling it hands
the launch to the current `Device`: CuPy, or in tests one that runs the same source on the CPU, so that whatever is
built on this gate can be seen to work without a GPU. Twins ask `on_gpu(x)` whether an array is that device's.

A launch allocates nothing, waits for nothing, and reads nothing back: what makes only such calls can be captured in a
CUDA graph.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from minigrad.backend import Array, cupy_module, require_gpu
from minigrad.cublas import pointer

FOLDER = Path(__file__).parent
WARP = 32  # threads that run in step, on every GPU so far
STRIPS = 32  # warps of a block of sum_rows, in common.cuh
MOST_GRID, MOST_BLOCK, MOST_THREADS = (2**31 - 1, 65535, 65535), (1024, 1024, 64), 1024
SHARED_AT_FIRST = 48 << 10  # bytes of dynamic shared memory that a kernel may have without asking
OLDEST_CUPY = 13
STORED = {"float32": "float", "bfloat16": "BFloat16", "float16": "Half"}  # the types of stored.cuh, by dtype
PACK = 16  # bytes that a thread reads at once, at most
NULL = np.uint64(0)  # as CuPy takes it: for None it would pass no argument at all

Size: TypeAlias = int | tuple[int, ...]
Dim3: TypeAlias = tuple[int, int, int]


class Device(Protocol):
    """Who carries out launches."""

    def owns(self, x: Any) -> bool:
        """Whether x is an array in this device's memory."""
        ...

    def launch(self, kernel: "Kernel", grid: Dim3, block: Dim3, args: Sequence[Any], shared: int) -> None:
        """Run `kernel`: grid and block are not empty; args are arrays that it owns, NumPy scalars, or None."""
        ...


@dataclass(frozen=True, init=False)
class Kernel:
    """A kernel, described: `extern "C" __global__ void name(...)` in `file`. Nothing is compiled before it is called.

    Args:
        file: the source, from this folder.
        name: the function.
        **constants: macros that the source is compiled with: COLUMNS=192 is `-DCOLUMNS=192`.
    """

    file: str
    name: str
    constants: tuple[tuple[str, int | str], ...]

    def __init__(self, file: str, name: str, **constants: int | str) -> None:
        object.__setattr__(self, "file", file)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "constants", tuple(sorted(constants.items())))

    @property
    def path(self) -> Path:
        """The source file."""
        return FOLDER / self.file

    @property
    def macros(self) -> list[str]:
        """The constants as a compiler takes them."""
        return [f"-D{name}={value}" for name, value in self.constants]

    def __call__(self, grid: Size, block: Size, *args: Any, shared: int = 0) -> None:
        """Launch it on the current device. A grid with no block in it does nothing.

        Args:
            grid: blocks, a number or up to three.
            block: threads of a block, likewise.
            *args: an array for a pointer, None for a null pointer, and for a number the NumPy scalar of its C type:
                np.int32 for int, np.float32 for float, np.int64 for long long, np.bool_ for bool.
            shared: bytes of dynamic shared memory for each block.

        Raises:
            TypeError: an argument is none of these, or an array that is not on the device.
            ValueError: no GPU has so large a grid or block.
        """
        grid, block = self._dim3(grid, MOST_GRID, "grid"), self._dim3(block, MOST_BLOCK, "block")
        if not 0 < prod(block) <= MOST_THREADS:
            raise ValueError(f"{self.name}: a block has 1 to {MOST_THREADS} threads, got {block}")
        device = _device
        for i, arg in enumerate(args):
            if not (arg is None or isinstance(arg, np.generic) or device.owns(arg)):
                raise TypeError(self._refusal(i, arg))
        if 0 not in grid:
            device.launch(self, grid, block, args, shared)

    def _dim3(self, size: Size, most: Dim3, what: str) -> Dim3:
        x, y, z = (size, 1, 1) if isinstance(size, int) else (*size, 1, 1)[:3] if 1 <= len(size) <= 3 else (-1, -1, -1)
        if not (0 <= x <= most[0] and 0 <= y <= most[1] and 0 <= z <= most[2]):
            raise ValueError(f"{self.name}: a {what} is one to three numbers of at most {most}, got {size}")
        return x, y, z

    def _refusal(self, i: int, arg: Any) -> str:
        if isinstance(arg, bool | int | float):
            return (
                f"{self.name}: argument {i} is the Python number {arg!r}, which does not say its C type: "
                "np.int32(...) is an int, np.float32(...) a float, np.int64(...) a long long"
            )
        return (
            f"{self.name}: argument {i} must be an array on the device, None or a NumPy scalar, "
            f"got {type(arg).__module__}.{type(arg).__name__}"
        )


def sum_rows(beside: Kernel, parts: Array, sums: Array) -> None:
    """sums = Σ over the first axis of `parts`, in a fixed order: the kernel of common.cuh, compiled with `beside`."""
    kernel = Kernel(beside.file, "sum_rows", **dict(beside.constants))
    kernel(-(-sums.size // WARP), (WARP, STRIPS), parts, sums, np.int32(len(parts)), np.int32(sums.size))


def pack_of(x: Array, length: int, *arrays: Array | None) -> int:
    """How many numbers a thread may read at once from rows of `length` numbers of x's dtype: as many as make 16 bytes,
    if they fill the rows, and x and the other arrays, of whatever dtype, begin at multiples of 16 bytes (or of as many
    as so many of theirs are); else 1."""
    pack = PACK // x.dtype.itemsize
    fits = all(a is None or pointer(a) % min(pack * a.dtype.itemsize, PACK) == 0 for a in (x, *arrays))
    return pack if length % pack == 0 and fits else 1


class CuPyDevice:
    """The GPU, through CuPy: a source is compiled once for each set of constants, when it is first launched."""

    def __init__(self) -> None:
        self._modules: dict[tuple[Any, ...], Any] = {}
        self._functions: dict[Kernel, Any] = {}

    def owns(self, x: Any) -> bool:
        cupy = sys.modules.get("cupy")  # not imported: then nothing is its
        return cupy is not None and isinstance(x, cupy.ndarray)

    def launch(self, kernel: Kernel, grid: Dim3, block: Dim3, args: Sequence[Any], shared: int) -> None:
        function = self._functions.get(kernel) or self._compiled(kernel)
        if shared > SHARED_AT_FIRST and function.max_dynamic_shared_size_bytes < shared:
            function.max_dynamic_shared_size_bytes = shared
        function(grid, block, tuple(NULL if arg is None else arg for arg in args), shared_mem=shared)

    def _compiled(self, kernel: Kernel) -> Any:
        module = self._modules.get((kernel.file, kernel.constants))
        if module is None:
            cupy = cupy_module()
            if int(cupy.__version__.split(".")[0]) < OLDEST_CUPY:
                raise RuntimeError(
                    f"kernels need CuPy {OLDEST_CUPY} or newer, this is {cupy.__version__}: "
                    "pip install -U 'cupy-cuda13x[ctk]' (or 'cupy-cuda12x[ctk]')"
                )
            require_gpu(cupy)
            options = ("--std=c++17", f"-I{FOLDER}", *kernel.macros)
            module = cupy.RawModule(code=source_for_cupy(kernel), options=options)
            self._modules[kernel.file, kernel.constants] = module
        function = self._functions[kernel] = module.get_function(kernel.name)
        return function


def source_for_cupy(kernel: Kernel) -> str:
    """The text for CuPy, which keeps what it compiled by its text and options, blind to a header that changed.

    It also writes the text in the locale's encoding, and comments here have letters that not every locale has.
    """
    headers = sha256(b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.cuh")))).hexdigest()
    text = "".join(c if c.isascii() else "_" for c in kernel.path.read_text(encoding="utf-8"))  # "??" is an old escape
    return f"{text}\n// headers: {headers}\n"


class Launch(NamedTuple):
    """A launch as a `Recorder` notes it: of an array its address, of a scalar its value."""

    kernel: Kernel
    grid: Dim3
    block: Dim3
    args: tuple[Any, ...]
    shared: int


class Recorder:
    """Notes the launches in `launches`, and hands them on to `device`; with none, NumPy arrays stand for its memory."""

    def __init__(self, device: Device | None = None) -> None:
        self.device, self.launches = device, list[Launch]()

    def owns(self, x: Any) -> bool:
        return isinstance(x, np.ndarray) if self.device is None else self.device.owns(x)

    def launch(self, kernel: Kernel, grid: Dim3, block: Dim3, args: Sequence[Any], shared: int) -> None:
        noted = tuple(x if x is None or isinstance(x, np.generic) else pointer(x) for x in args)
        self.launches.append(Launch(kernel, grid, block, noted, shared))
        if self.device is not None:
            self.device.launch(kernel, grid, block, args, shared)


_device: Device = CuPyDevice()


def on_gpu(x: Array | None) -> bool:
    """Whether x is an array of the device that launches go to."""
    return _device.owns(x)


@contextmanager
def use_device(device: Device) -> Iterator[None]:
    """Within the block, launches go to `device`. (One thread at a time works with a GPU.)"""
    global _device
    previous, _device = _device, device
    try:
        yield
    finally:
        _device = previous
