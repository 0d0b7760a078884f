"""`minigrad.save` and `minigrad.load`: nested state in `.npz` and `.safetensors` files."""

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, nn, optim, serialize

SUFFIXES = [".npz", ".safetensors"]


def step(net, optimizer):
    optimizer.zero_grad()
    x = Tensor(np.random.default_rng(1).standard_normal((4, 2)).astype(np.float32))
    (net(x) * net(x)).mean().backward()
    optimizer.step()


def made():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = optim.Adam(net.parameters(), lr=0.1)
    schedulers = [optim.lr_scheduler.LinearLR(optimizer), optim.lr_scheduler.MultiStepLR(optimizer, [3])]
    return net, optimizer, optim.lr_scheduler.SequentialLR(optimizer, schedulers, milestones=[2])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_training_run_continues_from_a_file(suffix, tmp_path):
    first, second = made(), made()
    for _ in range(3):
        step(*first[:2])
        first[2].step()
    names = "model", "optimizer", "schedule"
    file = tmp_path / f"run{suffix}"
    minigrad.save({**{n: part.state_dict() for n, part in zip(names, first, strict=True)}, "epoch": 3}, file)
    state = minigrad.load(file)
    assert state["epoch"] == 3 and list(state["model"]) == list(first[0].state_dict())
    for name, part in zip(names, second, strict=True):
        part.load_state_dict(state[name])
    for net, optimizer, schedule in (first, second):
        for _ in range(3):
            step(net, optimizer)
            schedule.step()
    for name, x in first[0].state_dict().items():
        np.testing.assert_array_equal(x.numpy(), second[0].state_dict()[name].numpy())
    assert first[1].param_groups[0]["lr"] == second[1].param_groups[0]["lr"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_values_and_types_survive(suffix, tmp_path):
    value = {
        "a": [1, 2.5, None, True, "text", (1, [2])], 7: np.arange(3), "t": Tensor([1.0, 2.0], requires_grad=True),
        "nested": {"x/y": Tensor(np.int64(3)), "empty": {}, "big": float("inf")},
        "half": minigrad.ones(2, dtype="bfloat16"),
    }  # fmt: skip
    minigrad.save(value, tmp_path / f"f{suffix}")
    found = minigrad.load(tmp_path / f"f{suffix}", map_location="cpu", weights_only=True)
    assert found["a"] == value["a"] and type(found["a"][5]) is tuple and list(found) == list(value)
    assert isinstance(found[7], np.ndarray) and found[7].tolist() == [0, 1, 2]
    assert isinstance(found["t"], Tensor) and found["t"].tolist() == [1, 2] and not found["t"].requires_grad
    assert found["nested"]["x/y"].item() == 3 and found["nested"]["x/y"].dtype == np.int64
    assert found["nested"]["empty"] == {} and found["nested"]["big"] == float("inf")
    assert found["half"].dtype == "bfloat16"
    minigrad.save(Tensor([3.0]), tmp_path / f"g{suffix}")
    assert minigrad.load(tmp_path / f"g{suffix}").tolist() == [3]


def test_a_state_dict_has_plain_names_in_the_file(tmp_path):
    """Other programs read the file, and `load` reads files of other programs."""
    layer = nn.Linear(2, 3)
    minigrad.save(layer.state_dict(), tmp_path / "a.npz")
    arrays, _ = serialize.load(tmp_path / "a.npz")
    assert list(arrays) == ["weight", "bias"]
    np.savez(tmp_path / "b.npz", weight=np.ones((3, 2)), bias=np.ones(3))
    found = minigrad.load(tmp_path / "b.npz")
    assert found["weight"].shape == (3, 2) and isinstance(found["bias"], Tensor)


@pytest.mark.parametrize(
    ("value", "name", "error", "message"),
    [
        (
            {"a": 1},
            "x.pt",
            ValueError,
            "pickle files, which can run code: use a name that ends in .npz or .safetensors",
        ),
        ({"a": 1}, "x.PTH", ValueError, "pickle files"),
        ({"a": 1}, "x.bin", ValueError, "must end in .npz or .safetensors"),
        (nn.Linear(1, 1), "x.npz", TypeError, r"cannot store Linear: save its state_dict\(\)"),
        ({"a": {"b": object()}}, "x.npz", TypeError, "cannot store object at 'a/b'"),
        ({(1, 2): 3}, "x.npz", TypeError, "keys must be strings or integers"),
        ({"a/b": Tensor(1), "a": {"b": Tensor(2)}}, "x.npz", ValueError, "two arrays have the path 'a/b'"),
    ],
)
def test_what_cannot_be_saved_is_refused(value, name, error, message, tmp_path):
    with pytest.raises(error, match=message):
        minigrad.save(value, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_files_of_pickle_are_not_loaded(tmp_path):
    with pytest.raises(ValueError, match="pickle files"):
        minigrad.load(tmp_path / "x.pth")
    with pytest.raises(TypeError, match="take the name of a file"):
        minigrad.load(open)
