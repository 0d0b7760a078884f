"""L1: compile and launch CUDA kernels.

    forward = Kernel("norm.cu", "layer_norm_forward", COLUMNS=192)
    forward((rows,), (32, 8), x, y, np.int32(rows), np.float32(eps))

A `Kernel` names a function in a source file, usually of this folder, and the macros to compile the file with.
Calling a `Kernel` launches the function on the current `Device`. The default device is CuPy's GPU; the tests set a
device that runs the same source on the CPU. A fast path calls `on_gpu(x)` to check that an array is in the memory of
the current device.

A launch allocates no memory and does not synchronize, so it can be captured in a CUDA graph.
"""

import re
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
from minigrad.backend.cublas import pointer

FOLDER = Path(__file__).parent
WARP = 32  # threads of a warp
STRIPS = 32  # warps in a block of sum_rows (common.cuh)
MAX_GRID, MAX_BLOCK, MAX_THREADS = (2**31 - 1, 65535, 65535), (1024, 1024, 64), 1024
DEFAULT_SHARED = 48 << 10  # bytes: more dynamic shared memory needs an opt-in by a function attribute
MIN_CUPY = 14  # bfloat16; the id of NCCL as bytes; cuda.pathfinder, which finds cuBLAS
STORED = {"float32": "float", "bfloat16": "BFloat16", "float16": "Half"}  # dtype -> type in stored.cuh
PACK = 16  # bytes: the widest load or store of a thread
SMALLEST = 2.0**-126  # kernels compute with 0 in place of smaller float32 values: CuPy compiles with -ftz=true
NULL = np.uint64(0)  # a null pointer: CuPy drops an argument that is None

Size: TypeAlias = int | tuple[int, ...]
Dim3: TypeAlias = tuple[int, int, int]


class Device(Protocol):
    """Executes launches."""

    def owns(self, x: Any) -> bool:
        """True if x is an array in this device's memory."""
        ...

    def launch(self, kernel: "Kernel", grid: Dim3, block: Dim3, args: Sequence[Any], shared: int) -> None:
        """Run `kernel`. Grid and block are not empty; args are arrays of this device, NumPy scalars, or None."""
        ...


@dataclass(frozen=True, init=False)
class Kernel:
    """The kernel `extern "C" __global__ void name(...)` in `file`, compiled at its first launch.

    Args:
        file: the source file, in this folder, or its absolute path.
        name: the function.
        **constants: macros: COLUMNS=192 compiles with `-DCOLUMNS=192`.
    """

    file: str
    name: str
    constants: tuple[tuple[str, int | str], ...]

    def __init__(self, file: str | Path, name: str, **constants: int | str) -> None:
        object.__setattr__(self, "file", str(file))
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "constants", tuple(sorted(constants.items())))

    @property
    def path(self) -> Path:
        """The source file."""
        return FOLDER / self.file

    @property
    def macros(self) -> list[str]:
        """The constants as compiler options."""
        return [f"-D{name}={value}" for name, value in self.constants]

    @property
    def folders(self) -> list[Path]:
        """The folders of headers: this folder, and the folder of the source."""
        return list(dict.fromkeys((FOLDER, self.path.parent)))

    @property
    def options(self) -> tuple[str, ...]:
        """Compiler options: the folders of headers, the line `// options: ...` of the source, and the constants."""
        stated = re.search(r"^// options: (.+)$", self.path.read_text(encoding="utf-8"), re.MULTILINE)
        more = stated[1].split() if stated else ()
        return ("--std=c++17", *(f"-I{folder}" for folder in self.folders), *more, *self.macros)

    def __call__(self, grid: Size, block: Size, *args: Any, shared: int = 0) -> None:
        """Launch the kernel on the current device. An empty grid does nothing.

        Args:
            grid: number of blocks along x, or along up to three axes.
            block: number of threads in a block, likewise.
            *args: arrays for pointers, None for a null pointer, and NumPy scalars of the C type for values:
                np.int32 for int, np.float32 for float, np.int64 for long long, np.bool_ for bool.
            shared: bytes of dynamic shared memory for each block.

        Raises:
            TypeError: an argument has another type, or is an array outside the device.
            ValueError: the grid or block exceeds CUDA's limits.
        """
        grid, block = self._dim3(grid, MAX_GRID, "grid"), self._dim3(block, MAX_BLOCK, "block")
        if not 0 < prod(block) <= MAX_THREADS:
            raise ValueError(f"{self.name}: a block has 1 to {MAX_THREADS} threads, got {block}")
        device = _device
        for i, arg in enumerate(args):
            if not (arg is None or isinstance(arg, np.generic) or device.owns(arg)):
                raise TypeError(self._refusal(i, arg))
        if 0 not in grid:
            device.launch(self, grid, block, args, shared)

    def _dim3(self, size: Size, limit: Dim3, kind: str) -> Dim3:
        x, y, z = (size, 1, 1) if isinstance(size, int) else (*size, 1, 1)[:3] if 1 <= len(size) <= 3 else (-1, -1, -1)
        if not (0 <= x <= limit[0] and 0 <= y <= limit[1] and 0 <= z <= limit[2]):
            raise ValueError(f"{self.name}: a {kind} has one to three sizes, at most {limit}, got {size}")
        return x, y, z

    def _refusal(self, i: int, arg: Any) -> str:
        if isinstance(arg, bool | int | float):
            return (
                f"{self.name}: argument {i} is the Python number {arg!r}, which has no C type: "
                "use np.int32(...) for an int, np.float32(...) for a float, np.int64(...) for a long long"
            )
        return (
            f"{self.name}: argument {i} must be an array on the device, None or a NumPy scalar, "
            f"got {type(arg).__module__}.{type(arg).__name__}"
        )


def sum_rows(compiled: Kernel, partials: Array, first: Array, second: Array | None = None) -> None:
    """sums_j = Σ_i partials_ij, in a fixed order, by sum_rows of common.cuh. The first `first.size` sums are written to
    `first`, the rest to `second`. `compiled` is the kernel that wrote `partials`: its module contains sum_rows, so
    nothing more is compiled."""
    kernel = Kernel(compiled.file, "sum_rows", **dict(compiled.constants))
    columns = first.size + (0 if second is None else second.size)
    sizes = np.int32(len(partials)), np.int32(columns), np.int32(first.size)
    kernel(-(-columns // WARP), (WARP, STRIPS), partials, first, second, *sizes)


def pack_of(x: Array, length: int, *arrays: Array | None) -> int:
    """PACK, the number of elements that a thread loads at once from rows of `length` elements of x's dtype.

    16 / itemsize if this divides `length` and x and `arrays` are aligned to min(16 bytes, PACK elements); else 1.
    """
    pack = PACK // x.dtype.itemsize
    fits = all(a is None or pointer(a) % min(pack * a.dtype.itemsize, PACK) == 0 for a in (x, *arrays))
    return pack if length % pack == 0 and fits else 1


class CuPyDevice:
    """The GPU, through CuPy. A source is compiled once for each set of constants, at its first launch."""

    def __init__(self) -> None:
        self._modules: dict[tuple[Any, ...], Any] = {}
        self._functions: dict[Kernel, Any] = {}

    def owns(self, x: Any) -> bool:
        cupy = sys.modules.get("cupy")  # no CuPy array exists before somebody imports CuPy
        return cupy is not None and isinstance(x, cupy.ndarray)

    def launch(self, kernel: Kernel, grid: Dim3, block: Dim3, args: Sequence[Any], shared: int) -> None:
        function = self._functions.get(kernel) or self._compiled(kernel)
        if shared > DEFAULT_SHARED and function.max_dynamic_shared_size_bytes < shared:
            function.max_dynamic_shared_size_bytes = shared
        function(grid, block, tuple(NULL if arg is None else arg for arg in args), shared_mem=shared)

    def _compiled(self, kernel: Kernel) -> Any:
        module = self._modules.get((kernel.file, kernel.constants))
        if module is None:
            cupy = cupy_module()
            if int(cupy.__version__.split(".")[0]) < MIN_CUPY:
                raise RuntimeError(
                    f"kernels need CuPy {MIN_CUPY} or newer, this is {cupy.__version__}: "
                    "pip install -U 'cupy-cuda13x[ctk]' (or 'cupy-cuda12x[ctk]')"
                )
            require_gpu(cupy)
            module = cupy.RawModule(code=source_for_cupy(kernel), options=kernel.options)
            self._modules[kernel.file, kernel.constants] = module
        function = self._functions[kernel] = module.get_function(kernel.name)
        return function


def source_for_cupy(kernel: Kernel) -> str:
    """The source with a hash of the headers: CuPy's cache is keyed by source and options, not by included headers.

    CuPy writes the source in the locale's encoding, which may lack the Greek letters of comments: they become "_".
    """
    found = [path for folder in kernel.folders for path in sorted(folder.glob("*.cuh"))]
    headers = sha256(b"".join(path.read_bytes() for path in found)).hexdigest()
    # ("?" as the replacement could form a trigraph.)
    text = "".join(c if c.isascii() else "_" for c in kernel.path.read_text(encoding="utf-8"))
    return f"{text}\n// headers: {headers}\n"


class Launch(NamedTuple):
    """A recorded launch. In `args`, an array is replaced by its address."""

    kernel: Kernel
    grid: Dim3
    block: Dim3
    args: tuple[Any, ...]
    shared: int


class Recorder:
    """Records launches in `launches` and forwards them to `device`. Without a device, the recorder owns NumPy
    arrays and runs nothing."""

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
    """True if x is an array in the memory of the current device."""
    return _device.owns(x)


@contextmanager
def use_device(device: Device) -> Iterator[None]:
    """Within the block, launches run on `device`. Not thread-safe: only one thread at a time may use a GPU."""
    global _device
    previous, _device = _device, device
    try:
        yield
    finally:
        _device = previous
