"""Buckets in a training step that is captured as a CUDA graph (without a GPU: on tests/cupy_on_cpu)."""

from contextlib import nullcontext

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, nn, optim
from minigrad import functional as F
from minigrad.backend import to_device
from minigrad.cuda_graph import GraphedStep
from minigrad.kernels.cuda import launch
from minigrad.kernels.cuda.launch import Recorder, use_device
from minigrad.parallel import Buckets
from tests.cuda.runner import needs_compiler

pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def only_on_a_gpu(device):
    if device == "cpu":
        pytest.skip("CUDA graphs need a GPU")


class Twice:
    """A World of two ranks with equal gradients: the sum over the ranks is twice the array of this rank."""

    rank, size = 0, 2

    def all_reduce(self, *arrays, op="sum"):
        for x in arrays:
            x *= 2

    def start_all_reduce(self, *arrays):
        self.all_reduce(*arrays)
        return self

    def wait(self):
        pass


class Model(nn.Module):
    def __init__(self):
        self.first, self.second, self.unused = nn.Linear(6, 20), nn.Linear(20, 10), nn.Linear(3, 3)

    def forward(self, x):
        return self.second(F.gelu(self.first(x)))


def train(graphed, reduced):
    """The parameters after 6 steps, and the gradients' arrays in each step."""
    minigrad.manual_seed(0)
    model = Model().to("cuda")
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    buckets = Buckets(model.parameters(), Twice(), 1e-4)
    addresses = []

    def step(images, labels):
        optimizer.zero_grad()
        with buckets.reducing() if reduced else nullcontext():
            loss = F.cross_entropy(model(Tensor(images)), Tensor(labels)) * (1 if reduced else 2)
            loss.backward()
        optimizer.step()
        addresses.append(
            [p.grad.data.__cuda_array_interface__["data"][0] for p in model.parameters() if p.grad is not None]
        )
        return loss.data

    run, rng = GraphedStep(step, optimizer, warmup=2) if graphed else step, np.random.default_rng(0)
    for _ in range(6):
        x, labels = rng.standard_normal((4, 6)).astype(np.float32), rng.integers(0, 10, 4)
        run(to_device(x, "cuda"), to_device(labels, "cuda"))
    assert model.unused.weight.grad is None
    return [to_device(p.data, "cpu") for p in model.parameters()], addresses


def test_captured_reduction_equals_eager_reduction():
    expected, _ = train(graphed=False, reduced=False)
    for graphed in (False, True):
        found, addresses = train(graphed, reduced=True)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
        assert all(own == addresses[0] for own in addresses)
        assert len(addresses) == (3 if graphed else 6)  # two steps of warm-up, and the capture


def test_copies_of_a_bucket_are_one_launch():
    model = Model().to("cuda")
    buckets = Buckets(model.parameters(), Twice(), 25)
    with use_device(recorder := Recorder(launch._device)), buckets.reducing():
        model(Tensor(to_device(np.ones((2, 6), np.float32), "cuda"))).sum().backward()
    assert [launch.kernel.name for launch in recorder.launches].count("copies") == 1


def test_capture_with_other_parameters_than_before_is_refused():
    model, used = Model().to("cuda"), []
    optimizer, buckets = optim.AdamW(model.parameters()), Buckets(model.parameters(), Twice())

    def step(x):
        optimizer.zero_grad()
        with buckets.reducing():
            y = model(Tensor(x)).sum()
            (y + model.unused(Tensor(x[:, :3])).sum() if len(used) == 1 else y).backward()
        used.append(1)
        optimizer.step()

    run = GraphedStep(step, optimizer, warmup=1)
    x = to_device(np.ones((2, 6), np.float32), "cuda")
    run(x)
    with pytest.raises(RuntimeError, match="must use the same parameters"):
        run(x)
