"""Fast paths of functions: casts, random numbers, optimizer updates. On a GPU, or on the stand-in for CuPy, the kernels
run outside `without_fast_paths`, the reference implementation runs within, and both give the same results."""

from contextlib import contextmanager

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, nn, optim
from minigrad.backend import array_module, fast_paths, to_device
from minigrad.backend.dtypes import FLOAT32, cast, cast_all
from minigrad.backend.random import Generator
from minigrad.kernels.cuda import launch
from minigrad.kernels.cuda.launch import Recorder, use_device
from minigrad.ops import updates
from tests.cuda.runner import needs_compiler

pytestmark = [needs_compiler, pytest.mark.parametrize("device", ["cuda"], indirect=True)]

SHAPES = [(3, 5), (7,), (), (4097,)]


def arrays(seed, dtype=FLOAT32):
    rng = np.random.default_rng(seed)
    return [to_device(np.asarray(rng.standard_normal(shape), dtype), "cuda") for shape in SHAPES]


def parameters(dtype=FLOAT32):
    """Tensors on the GPU, with gradients."""
    tensors = [Tensor(x, requires_grad=True) for x in arrays(0, dtype)]
    for tensor, grad in zip(tensors, arrays(1, dtype), strict=True):
        tensor.grad = Tensor(grad)
    return tensors


def grads_of(tensors):
    return [tensor.grad.data for tensor in tensors]


def adamw(other=()):
    """The parameters and the optimizer state after three steps of AdamW."""
    tensors = [*parameters(), *other]
    optimizer = optim.AdamW(tensors, lr=0.1)
    for _ in range(3):
        optimizer.step()
    return [*(tensor.data for tensor in tensors), *optimizer.flat_state_dict().values()]


def clip():
    tensors = parameters()
    return [optim.clip_grad_norm_(tensors, 1.0).data, *grads_of(tensors)]


def unscale():
    tensors = parameters()
    scaler, optimizer = optim.GradScaler(3.0), optim.SGD(tensors)
    scaler.unscale_(optimizer)
    return [np.asarray(scaler._finite[optimizer]), *grads_of(tensors)]


class Model(nn.Module):
    def __init__(self, tensors):
        for i, x in enumerate(tensors):
            setattr(self, f"p{i}", nn.Parameter(x.data))


def ema(other=()):
    """The state of an EMA after two updates, each after a change of the parameters."""
    model = Model([*parameters(), *other])
    average = optim.EMA(model, 0.9, warmup=True)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.data += 1
        average.update()
    return list(average.state_dict().values())


def copies():
    """A third of each array, in the slots of one flat array; one array is not contiguous."""
    sources = [*arrays(0), arrays(1)[0].T]
    flat = array_module(sources[0]).zeros((sum(x.size for x in sources),), np.float32)
    ends = np.cumsum([x.size for x in sources]).tolist()
    slots = [flat[end - x.size : end].reshape(x.shape) for x, end in zip(sources, ends, strict=True)]
    fast_paths.call(updates.copy_all, list(zip(slots, sources, strict=True)), 3.0)
    return [flat]


CASES = {  # reference implementation: (names of the launched kernels, call)
    cast: (["convert"], lambda: [cast(arrays(0)[0], np.dtype(np.float16))]),
    cast_all: (["convert_all"], lambda: cast_all(arrays(0), np.dtype(np.float16))),
    Generator.words: (["words"], lambda: [Generator(1).words(9, "cuda")]),
    Generator.uniform: (["uniform"], lambda: [Generator(1).uniform((3, 5), device="cuda")]),
    updates.adamw_all: (["adamw"] * 3, adamw),
    updates.clip_by_global_norm: (["squares", "clip_factor", "scale"], clip),
    updates.unscale: (["unscale"], unscale),
    updates.average_all: (["average"] * 2, ema),
    updates.copy_all: (["copies"], copies),
}


@contextmanager
def recorded():
    """Within the block, the names of the kernels that are launched are recorded."""
    names = []
    with use_device(recorder := Recorder(launch._device)):
        yield names
    names += [launch.kernel.name for launch in recorder.launches]


def compared(run):
    """The kernels that `run` launches. Without fast paths, `run` launches none and has the same results."""
    with recorded() as names:
        found = run()
    with minigrad.without_fast_paths(), recorded() as without:
        expected = run()
    assert not without
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype and array_module(x) is array_module(y)
        np.testing.assert_allclose(to_device(x, "cpu"), to_device(y, "cpu"), rtol=1e-6, atol=1e-7)
    return names


@pytest.mark.parametrize("reference", CASES, ids=lambda function: function.__qualname__)
def test_kernel_equals_reference(reference, device):
    kernels, run = CASES[reference]
    assert compared(run) == kernels


def test_every_function_with_fast_paths_has_a_case(device):
    functions = (
        function
        for function, implementations in fast_paths._registered.items()
        if not isinstance(function, type)
        and any(path.__module__.startswith("minigrad.kernels.cuda.") for path in implementations)
    )
    assert set(functions) == set(CASES)


@pytest.mark.parametrize("run", [adamw, ema])
def test_rows_that_do_not_fit_are_left_to_the_reference(run, device):
    """The reference updates float64 parameters; one launch per step still updates the float32 parameters."""
    names = compared(lambda: run(parameters(np.float64)))
    assert names == ["adamw" if run is adamw else "average"] * len(names) and len(names) == (3 if run is adamw else 2)
