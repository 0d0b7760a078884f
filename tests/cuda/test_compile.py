"""Every kernel compiles to machine code for GPUs that are not here, in registers alone and in few enough of them.

By nvcc, and by NVRTC, which is the compiler that CuPy uses and comes from PyPI: pip install nvidia-cuda-nvrtc.
"""

import ctypes
import importlib.util
import re
import shutil
import subprocess
from functools import cache
from hashlib import sha256
from pathlib import Path

import pytest

from minigrad.kernels.cuda.launch import FOLDER, Kernel, source_for_cupy
from tests.cuda.runner import CACHE, kernels

ARCHITECTURES = ("sm_80", "sm_90")  # Ampere and Hopper


def table(path):
    """Lines of a source such as `// registers[COLUMNS=192 TEAM=32]: forward 48, backward 72`: the constants that it is
    compiled with, and the most registers that a thread of each kernel may take then."""
    lines = re.findall(r"^// registers\[(.*)\]: (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return [
        (tuple(constants.split()), {name: int(most) for name, most in map(str.split, ceilings.split(","))})
        for constants, ceilings in lines
    ]


SOURCES = sorted(FOLDER.glob("*.cu"))
SHARED = dict(ceiling for header in FOLDER.glob("*.cuh") for _, row in table(header) for ceiling in row.items())
ROWS = [
    pytest.param(path, *row, id=f"{path.name} {' '.join(row[0])}", marks=[pytest.mark.exhaustive] if i else ())
    for path in SOURCES
    for i, row in enumerate(table(path))
]
each = pytest.mark.parametrize(("path", "macros", "ceilings"), ROWS)


@pytest.mark.parametrize("path", [*SOURCES, *FOLDER.glob("*.cuh")], ids=lambda path: path.name)
def test_every_kernel_has_a_ceiling(path):
    named = [name for _, ceilings in table(path) for name in ceilings]
    assert set(kernels(path)) == set(named), (
        f"{path.name}: which constants it is compiled with, and how many registers each kernel may take then, is to be "
        "said beside the kernels, in lines such as // registers[COLUMNS=192 TEAM=32]: forward 48, backward 72"
    )


def assert_fits(log, path, ceilings):
    """What ptxas says of each kernel: its registers, and what it keeps in memory for lack of them."""
    found = re.findall(
        r"entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill "
        r"loads.*?Used (\d+) registers",
        log,
        re.DOTALL,
    )
    assert {(name, arch) for name, arch, *_ in found} >= {(k, a) for k in kernels(path) for a in ARCHITECTURES}, log
    most = SHARED | ceilings
    for name, arch, *memory, registers in found:
        assert memory == ["0"] * 3, f"{name} for {arch}: stack frame, spill stores and loads of {memory} bytes"
        assert int(registers) <= most.get(name, 255), f"{name} for {arch}: {registers} registers"


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc (it comes with NVIDIA's CUDA toolkit)")
@each
def test_nvcc(path, macros, ceilings):
    assert_fits(nvcc(path, macros), path, ceilings)


def nvcc(path, macros):
    """What it prints. A second or two: the answer is kept."""
    command = ["nvcc", "-std=c++17", "-fatbin", "-Werror", "all-warnings", "-Xptxas", "-v", f"-I{FOLDER}"]
    command += [f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}" for arch in ARCHITECTURES]
    command += [f"-D{macro}" for macro in macros]
    texts = [path.read_text(), *(path.read_text() for path in sorted(FOLDER.glob("*.cuh")))]
    key = sha256("\0".join([*command, version(), *texts]).encode()).hexdigest()
    kept = CACHE / f"{key[:32]}.log"
    if not kept.exists():
        CACHE.mkdir(mode=0o700, exist_ok=True)
        done = subprocess.run([*command, path, "-o", "/dev/null"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        kept.write_text(done.stderr)
    return kept.read_text()


@cache
def version():
    return subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout


# NVRTC --------------------------------------------------------------------------------------------------------------


def nvrtc_path():
    """The library of the package nvidia-cuda-nvrtc, if it is installed."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [p for folder in folders for p in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")) if "alt" not in p.name]
    return found[-1] if found else None


@pytest.mark.skipif(nvrtc_path() is None, reason="no NVRTC: pip install nvidia-cuda-nvrtc")
@each
def test_nvrtc(path, macros, ceilings):
    library = nvrtc_library(nvrtc_path())
    log = ""
    for arch in ARCHITECTURES:
        # what minigrad/kernels/cuda/launch.py gives, then what CuPy 14 adds (cupy/cuda/compiler.py), then ours
        options = [
            "--std=c++17", f"-I{FOLDER}", *(f"-D{macro}" for macro in macros), "-ftz=true", f"-arch={arch}",
            "--device-as-default-execution-space", "--ptxas-options=-v",
        ]  # fmt: skip
        status, said = nvrtc(library, source_for_cupy(Kernel(path.name, "any")), options)
        assert status == 0 and "warning" not in said, said
        log += said
    assert_fits(log, path, ceilings)


@cache
def nvrtc_library(path):
    """The library. It opens another, of its folder, by name alone: which is found if it is loaded before."""
    for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins))
    return ctypes.CDLL(str(path))


def nvrtc(library, source, options):
    """Compile a source: the status, 0 if all is well, and what the compiler says."""
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
