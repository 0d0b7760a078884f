"""`Kernel` and its devices: what a launch records, which arguments raise, and how CuPy is called."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from minigrad.backend import cupy_module
from minigrad.kernels.cuda import launch
from minigrad.kernels.cuda.launch import CuPyDevice, Kernel, Recorder, on_gpu, use_device

FORWARD = Kernel("norm.cu", "layer_norm_forward", COLUMNS=4, TEAM=32)


def test_equal_kernels_have_equal_hashes():
    same, other = Kernel("norm.cu", "layer_norm_forward", TEAM=32, COLUMNS=4), Kernel("norm.cu", "sum_rows", COLUMNS=4)
    assert same == FORWARD != other and len({same, FORWARD, other}) == 2
    assert FORWARD.path.is_file() and FORWARD.macros == ["-DCOLUMNS=4", "-DTEAM=32"]


def test_recorder_records_launches_in_order():
    x, y = np.zeros((2, 3), np.float32), np.zeros(3, np.float32)
    recorder = Recorder()
    assert not on_gpu(x)
    with use_device(recorder):
        assert on_gpu(x) and not on_gpu(None)
        FORWARD(3, (32, 8), x, None, np.int32(5), shared=8)
        FORWARD(0, 32, x)
        FORWARD((3, 0, 2), 32, x)
        FORWARD((3, 1, 2), (1, 2, 3), y)
    assert not on_gpu(x)
    assert recorder.launches == [
        (FORWARD, (3, 1, 1), (32, 8, 1), (x.ctypes.data, None, 5), 8),
        (FORWARD, (3, 1, 2), (1, 2, 3), (y.ctypes.data,), 0),
    ]
    outer = Recorder(recorder)
    with use_device(outer):
        assert on_gpu(x)
        FORWARD(1, 1, y)
    assert outer.launches == recorder.launches[2:] and len(outer.launches) == 1


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        (5, r"layer_norm_forward: argument 1 is the Python number 5, .* np.int32\(...\) for an int"),
        (0.5, "argument 1 is the Python number 0.5"),
        (True, "argument 1 is the Python number True"),
        ([1], "argument 1 must be an array on the device, None or a NumPy scalar, got builtins.list"),
    ],
)
def test_argument_without_c_type_raises(arg, message):
    recorder = Recorder()
    with use_device(recorder), pytest.raises(TypeError, match=message):
        FORWARD(1, 1, None, arg)
    assert not recorder.launches


def test_numpy_array_raises():
    with pytest.raises(TypeError, match=r"must be an array on the device.* got numpy.ndarray"):
        FORWARD(1, 1, np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        ((1, 65536), 1, "a grid has one to three sizes, at most"),
        (-1, 1, "a grid has one to three sizes"),
        ((), 1, "a grid has one to three sizes"),
        ((1, 1, 1, 1), 1, "a grid has one to three sizes"),
        (1, (1, 1, 65), "a block has one to three sizes"),
        (1, (32, 33), "a block has 1 to 1024 threads"),
        (0, 0, "a block has 1 to 1024 threads"),
    ],
)
def test_grid_or_block_beyond_the_limits_raises(grid, block, message):
    with use_device(Recorder()), pytest.raises(ValueError, match=message):
        FORWARD(grid, block)


class FakeCupy:
    """The part of CuPy that `CuPyDevice` uses; records the calls."""

    def __init__(self, version="14.2.0", available=True):
        self.__version__, self.compiled, self.calls, self.raised = version, [], [], []
        self.cuda = SimpleNamespace(is_available=lambda: available)
        self.ndarray = type("ndarray", (), {})
        fake = self

        class Function:
            def __init__(self, name):
                self.name, self._most = name, 48 << 10

            @property
            def max_dynamic_shared_size_bytes(self):
                return self._most

            @max_dynamic_shared_size_bytes.setter
            def max_dynamic_shared_size_bytes(self, size):
                self._most = size
                fake.raised.append(size)

            def __call__(self, *call, **options):
                fake.calls.append((self.name, *call, options))

        class RawModule:
            def __init__(self, *, code, options):
                fake.compiled.append((code, options))

            def get_function(self, name):
                return Function(name)

        self.RawModule = RawModule


@pytest.fixture
def cupy(monkeypatch):
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def test_source_is_compiled_once_per_set_of_constants(cupy):
    x = cupy.ndarray()
    with use_device(CuPyDevice()):
        assert on_gpu(x) and not on_gpu(np.zeros(3))
        FORWARD(0, 1, x)
        assert not cupy.compiled  # nothing was launched
        for name in ("layer_norm_forward", "layer_norm_forward", "sum_rows"):
            Kernel("norm.cu", name, COLUMNS=4, TEAM=32)(2, (32, 8), x, None, np.int32(7), shared=16)
        assert len(cupy.compiled) == 1
        Kernel("norm.cu", "sum_rows", COLUMNS=8, TEAM=32)(1, 1)
    assert len(cupy.compiled) == 2
    code, options = cupy.compiled[0]
    assert options == ("--std=c++17", f"-I{launch.FOLDER}", "-DCOLUMNS=4", "-DTEAM=32")
    assert "layer_norm_forward(const Stored* __restrict__ x" in code and code.isascii()
    assert [call[0] for call in cupy.calls] == ["layer_norm_forward", "layer_norm_forward", "sum_rows", "sum_rows"]
    name, grid, block, args, options = cupy.calls[0]
    assert (grid, block, options) == ((2, 1, 1), (32, 8, 1), {"shared_mem": 16})
    assert args == (x, 0, 7) and [type(arg) for arg in args[1:]] == [np.uint64, np.int32]  # a null pointer has 8 bytes


def test_changed_header_changes_the_source(cupy, tmp_path, monkeypatch):
    """CuPy caches by source, and an `#include` line does not change with the header."""
    monkeypatch.setattr(launch, "FOLDER", tmp_path)
    (tmp_path / "norm.cu").write_text('#include "common.cuh"')
    for text in ("1", "2", "2"):
        (tmp_path / "common.cuh").write_text(text)
        with use_device(CuPyDevice()):
            FORWARD(1, 1)
    codes = [code for code, _ in cupy.compiled]
    assert codes[0] != codes[1] == codes[2]


def test_source_outside_the_folder_has_its_own_headers_and_options(cupy, tmp_path):
    source = tmp_path / "own.cu"
    source.write_text('// options: --fmad=false\n#include "own.cuh"\n')
    for text in ("1", "2", "2"):
        (tmp_path / "own.cuh").write_text(text)
        with use_device(CuPyDevice()):
            Kernel(source, "own", N=1)(1, 1)
    codes, options = zip(*cupy.compiled, strict=True)
    assert codes[0] != codes[1] == codes[2]
    assert options[0] == ("--std=c++17", f"-I{launch.FOLDER}", f"-I{tmp_path}", "--fmad=false", "-DN=1")


def test_large_shared_memory_is_opted_into(cupy):
    with use_device(CuPyDevice()):
        for shared in (48 << 10, 64 << 10, 50 << 10, 65 << 10):
            FORWARD(1, 1, shared=shared)
    assert cupy.raised == [64 << 10, 65 << 10]


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        (None, "needs CuPy, which is not installed"),
        (FakeCupy(version="13.6.0"), "kernels need CuPy 14 or newer, this is 13.6.0"),
        (FakeCupy(available=False), "finds no usable GPU"),
    ],
)
def test_missing_or_old_cupy_and_missing_gpu_raise(monkeypatch, fake, message):
    monkeypatch.setitem(sys.modules, "cupy", fake)
    with use_device(CuPyDevice()), pytest.raises(RuntimeError, match=message):
        FORWARD(1, 1)


@pytest.mark.parametrize(
    "cause",
    ["ImportError('libnvrtc.so.13: cannot open')", "ModuleNotFoundError('No module fastrlock', name='fastrlock')"],
)
def test_cupy_that_cannot_be_imported_says_why(monkeypatch, tmp_path, cause):
    (tmp_path / "cupy.py").write_text(f"raise {cause}\n")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="CuPy, which is installed, but cannot be imported") as raised:
        cupy_module()
    assert str(raised.value.__cause__) in str(raised.value)


def test_numpy_arrays_do_not_import_cupy():
    code = """
import sys
import numpy as np
import minigrad.functional as F
from minigrad import Tensor
from minigrad.kernels.cuda.launch import on_gpu

class Finder:
    def find_spec(self, name, *rest):
        assert name.split(".")[0] != "cupy", "imports cupy"

sys.meta_path.insert(0, Finder())
x = np.zeros((2, 4), np.float32)
assert not on_gpu(x) and not on_gpu(None)
F.layer_norm(Tensor(x, requires_grad=True), 4).sum().backward()
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
