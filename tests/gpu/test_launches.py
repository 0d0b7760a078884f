"""The launches and bytes of a training step are those of launches.json, which CuPy on a fake CUDA runtime confirmed."""

import json

import numpy as np
import pytest

from minigrad import Tensor, without_fast_paths
from minigrad import functional as F
from minigrad.backend import array_module, to_device
from tests.cuda.runner import needs_compiler
from tests.gpu import launches


@needs_compiler  # without a compiler, the stand-in has no CUDA fast paths
@pytest.mark.parametrize("model", launches.MODELS)
def test_launches_are_as_recorded(model):
    found = launches.row(model)
    assert not (text := launches.compared(model, launches.recorded().get(model, {}), found)), text


def counted(work, *arrays):
    """The launches of `work` by name, and their bytes."""
    with launches.counting() as count:
        on_device = [to_device(x, "cuda") for x in arrays]
        work(array_module(on_device[0]), *on_device)
    return dict(count.launches), count.bytes


def add_in_place(xp, x):
    x[0] += x[1]


X = np.ones((4, 8), np.float32)  # 128 bytes


@pytest.mark.parametrize(
    ("work", "expected", "nbytes"),
    [
        (lambda xp, x: x + x, {"CuPy add -> float32": 1}, 256),
        (lambda xp, x: (x.T, x[1:], x.reshape(8, 4), xp.broadcast_to(x, (2, 4, 8)), xp.empty((2,), x.dtype)), {}, 0),
        (lambda xp, x: xp.ascontiguousarray(x), {}, 0),
        (lambda xp, x: x.T.reshape(-1), {"CuPy reshape -> float32": 1}, 256),
        (lambda xp, x: xp.ascontiguousarray(x.T), {"CuPy ascontiguousarray -> float32": 1}, 256),
        (lambda xp, x: xp.concatenate([x, x, x]), {"CuPy concatenate -> float32": 3}, 510),
        (lambda xp, x: x.sum(axis=0), {"CuPy sum -> float32": 1}, 160),
        (lambda xp, x: x.astype(np.float64), {"CuPy astype -> float64": 1}, 384),
        (lambda xp, x: x[:0] + 1, {}, 0),
        (lambda xp, x: x.__setitem__(0, 1.0), {"CuPy setitem -> float32": 1}, 128),
        (lambda xp, x: x.__setitem__(0, x[1]), {"CuPy setitem -> float32": 1}, 160),
        (lambda xp, x: x[0].__iadd__(x[1]), {"CuPy iadd -> float32": 1}, 64),
        (lambda xp, x: xp.add(x, x, out=x), {"CuPy add -> float32": 1}, 128),
        (add_in_place, {"CuPy iadd -> float32": 1}, 64),
        (lambda xp, x: x[:2].fill(1), {"CuPy fill -> float32": 1}, 64),
    ],
)
def test_launches_of_cupys_operations(work, expected, nbytes):
    found, moved = counted(work, X)
    assert found == expected
    assert moved == pytest.approx(nbytes, rel=0.01)


@needs_compiler
def test_kernels_and_products_are_counted_not_run():
    def run(xp, x):
        t = Tensor(x)
        assert F.gelu(t).grad_fn is None and (t @ t.T).shape == (4, 4)

    found, moved = counted(run, X)
    assert found == {"kernel gelu_forward": 1, "product": 1}
    assert moved == 256 + 128 + 128 + 64


def test_difference_is_reported_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(launches, "FILE", tmp_path / "launches.json")
    monkeypatch.setattr(launches, "MODELS", {"vit_nano_cifar": (128,)})
    monkeypatch.setattr("sys.argv", ["launches", "--record"])
    assert launches.main() == 0
    monkeypatch.setattr("sys.argv", ["launches"])
    assert launches.main() == 0
    before = json.loads((tmp_path / "launches.json").read_text())["vit_nano_cifar"]
    assert before["launches"] == sum(before["launches by name"].values()) > 100
    with without_fast_paths():
        assert launches.main() == 1
        text = launches.compared("vit_nano_cifar", before, launches.row("vit_nano_cifar"))
    assert "kernel gelu_forward 4 -> 0" in text and "python -m tests.gpu.launches --record" in text


def test_launches_that_depend_on_the_batch_are_refused(monkeypatch):
    counts = iter([launches.Count(), launches.Count()])

    def counted(model, batch):
        count = next(counts)
        for _ in range(batch):
            count.add("copy", 8)
        return count

    monkeypatch.setattr(launches, "counted", counted)
    with pytest.raises(ValueError, match=r"depend on the batch: copy 2 -> 3"):
        launches.row("vit_tiny_cifar")
