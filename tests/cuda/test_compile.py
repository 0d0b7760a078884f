"""Every kernel compiles without spills for Ampere, Ada and Hopper, with the occupancy that its source states.

The compilers are nvcc and NVRTC (pip install nvidia-cuda-nvrtc), with the options of CuPy, which uses NVRTC. The number
of registers depends on the compiler's version. So a source states the number of resident warps per multiprocessor
instead. Kernels are tuned for Ampere to Hopper: for Blackwell (sm_100) a few of them spill, up to `SPILLED` bytes.
"""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
from functools import cache
from hashlib import sha256
from pathlib import Path

import pytest

from minigrad.kernels.cuda.launch import Kernel, source_for_cupy
from tests.cuda.runner import CACHE, FOLDERS, kernels

# resident warps per multiprocessor (A100, RTX 40, H100, B200)
MAX_WARPS = {"sm_80": 64, "sm_89": 48, "sm_90": 64, "sm_100": 64}
SPILLED = {"sm_100": 96}  # bytes of a thread's stack frame, spill stores or spill loads; 0 elsewhere
REGISTERS = 65536  # per multiprocessor, in each architecture of MAX_WARPS


def resident_warps(registers):
    """The number of warps whose registers fit a multiprocessor. A thread's registers are allocated in units of 8."""
    return REGISTERS // (32 * (-(-registers // 8) * 8))


def table(path):
    """The lines `// warps[COLUMNS=192 TEAM=32]: forward 48, backward 32` of a source: macros, and the minimum number
    of resident warps of each kernel. A line may be continued after a comma."""
    text = re.sub(r",\n//\s+", ",", path.read_text(encoding="utf-8"))
    lines = re.findall(r"^// warps\[(.*)\]: (.+)$", text, re.MULTILINE)
    return [(tuple(constants.split()), numbers(minima)) for constants, minima in lines]


def numbers(text):
    """forward 48, backward 32 -> {"forward": 48, "backward": 32}."""
    return {name: int(number) for name, number in map(str.split, text.split(","))}


def stacks(path):
    """The line `// stack: kernel 40` of a source: the maximum bytes of the stack frame of a kernel, by default 0.

    Functions such as cos need a stack for large arguments, even if no argument is large."""
    lines = re.findall(r"^// stack: (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: size for line in lines for name, size in numbers(line).items()}


SOURCES, HEADERS = (sorted(path for folder in FOLDERS for path in folder.glob(ending)) for ending in ("*.cu", "*.cuh"))
SHARED = dict(minimum for header in HEADERS for _, row in table(header) for minimum in row.items())
ROWS = [
    pytest.param(path, *row, id=f"{path.name} {' '.join(row[0])}", marks=[pytest.mark.exhaustive] if i else ())
    for path in SOURCES
    for i, row in enumerate(table(path))
]
each = pytest.mark.parametrize(("path", "macros", "minima"), ROWS)


def test_every_kernel_states_its_occupancy():
    files = [*SOURCES, *HEADERS]
    named = {path.name: {name for _, minima in table(path) for name in minima} for path in files}
    assert {path.name: set(kernels(path)) for path in files} == named, (
        "each file must state the minimum resident warps of its kernels, for the macros it is compiled with, in lines "
        "such as // warps[COLUMNS=192 TEAM=32]: forward 48, backward 32"
    )


def assert_fits(log, path, minima, architectures):
    """Check the log of ptxas: no spills, no stack frame but the stated, and the stated number of resident warps."""
    found = re.findall(
        r"entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill "
        r"loads.*?Used (\d+) registers",
        log,
        re.DOTALL,
    )
    assert {(name, arch) for name, arch, *_ in found} >= {(k, a) for k in kernels(path) for a in architectures}, log
    minima = SHARED | minima
    for name, arch, stack, *spills, registers in found:
        allowed = SPILLED.get(arch, 0)
        assert max(map(int, spills)) <= allowed, f"{name} for {arch}: spill stores and loads of {spills} bytes"
        assert int(stack) <= max(allowed, stacks(path).get(name, 0)), f"{name} for {arch}: stack frame of {stack} bytes"
        least, warps = min(minima.get(name, 0), MAX_WARPS[arch]), resident_warps(int(registers))
        assert warps >= least, f"{name} for {arch}: {registers} registers allow {warps} resident warps of {least}"


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc (it comes with NVIDIA's CUDA toolkit)")
@each
def test_nvcc_compiles_without_spills(path, macros, minima):
    assert_fits(nvcc(path, macros), path, minima, nvcc_architectures())


def options_of(path, macros):
    """The options with which minigrad/kernels/cuda/launch.py compiles a source."""
    return Kernel(path, "any", **dict(macro.split("=", 1) for macro in macros)).options


def nvcc(path, macros):
    """The output of nvcc, cached on disk: a compilation takes a second or two."""
    command = ["nvcc", "-ftz=true", "-fatbin", "-Werror", "all-warnings", "-Xptxas", "-v"]
    command += [f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}" for arch in nvcc_architectures()]
    command += [option.replace(",", r"\,") for option in options_of(path, macros)]  # nvcc splits options at commas
    texts = [file.read_text() for file in (path, *HEADERS)]
    key = sha256("\0".join([*command, version(), *texts]).encode()).hexdigest()
    kept = CACHE / f"{key[:32]}.log"
    if not kept.exists():
        CACHE.mkdir(mode=0o700, exist_ok=True)
        done = subprocess.run([*command, path, "-o", "/dev/null"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        unfinished = kept.with_suffix(f".{os.getpid()}")
        unfinished.write_text(done.stderr)
        unfinished.replace(kept)  # no other process reads half of it
    return kept.read_text()


@cache
def version():
    return subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout


@cache
def nvcc_architectures():
    """The architectures of MAX_WARPS that this nvcc knows: versions before 12.8 lack sm_100."""
    known = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    return [arch for arch in MAX_WARPS if arch in known]


# NVRTC --------------------------------------------------------------------------------------------------------------


def nvrtc_path():
    """The library of the package nvidia-cuda-nvrtc, or None."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [p for folder in folders for p in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")) if "alt" not in p.name]
    return found[-1] if found else None


@pytest.mark.skipif(nvrtc_path() is None, reason="no NVRTC: pip install nvidia-cuda-nvrtc")
@each
def test_nvrtc_compiles_without_spills(path, macros, minima):
    library = nvrtc_library(nvrtc_path())
    log, architectures = "", nvrtc_architectures(library)
    for arch in architectures:
        # those that CuPy 14 adds (cupy/cuda/compiler.py), and ptxas -v
        more = ["-ftz=true", f"-arch={arch}", "--device-as-default-execution-space", "--ptxas-options=-v"]
        status, said = nvrtc(library, source_for_cupy(Kernel(path, "any")), [*options_of(path, macros), *more])
        assert status == 0 and "warning" not in said, said
        log += said
    assert_fits(log, path, minima, architectures)


@cache
def nvrtc_library(path):
    """Load NVRTC after its builtins: NVRTC opens the builtins by name, which succeeds if already loaded."""
    for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins))
    return ctypes.CDLL(str(path))


def nvrtc_architectures(library):
    """The architectures of MAX_WARPS that this NVRTC knows."""
    count = ctypes.c_int()
    assert not library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    assert not library.nvrtcGetSupportedArchs(known)
    return [arch for arch in MAX_WARPS if int(arch.removeprefix("sm_")) in known]


def nvrtc(library, source, options):
    """Compile a source. Returns the status, 0 for success, and the log."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert not library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = library.nvrtcCompileProgram(program, len(options), given)
        assert not library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        said = ctypes.create_string_buffer(size.value)
        assert not library.nvrtcGetProgramLog(program, said)
        return status, said.value.decode()
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
