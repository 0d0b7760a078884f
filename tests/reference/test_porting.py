"""PyTorch training scripts run with minigrad by one changed import: the same losses from the same weights."""

from pathlib import Path

import numpy as np
import pytest

import minigrad
from minigrad import Tensor

torch = pytest.importorskip("torch")

FOLDER = Path(__file__).parent / "porting"
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


def script(name, library):
    """The module of a script, with `import torch`, or with `import minigrad as torch`."""
    source = (FOLDER / f"{name}.py").read_text()
    assert source.count("\nimport torch\n") == 1
    scope = {"__name__": name}
    changed = source.replace("\nimport torch\n", f"\nimport {library} as torch\n")
    exec(compile(changed, f"{name}.py", "exec"), scope)
    return scope


def mlp_data(rng, dtype):
    x = rng.standard_normal((60, 7)).astype(dtype)
    y = np.abs(x[:, :4]).argmax(1)
    return {"x": x[:40], "y": y[:40], "x_val": x[40:], "y_val": y[40:]}


def lenet_data(rng, dtype):
    labels = rng.integers(0, 10, 30)
    images = rng.standard_normal((30, 1, 28, 28)).astype(dtype)
    images[np.arange(30), 0, labels] += 2  # class c: a bright row c
    return {"images": images, "labels": labels}


def gpt_data(rng, dtype):
    starts, steps = rng.integers(0, 11, (8, 1)), rng.integers(1, 4, (8, 1))
    tokens = (starts + steps * np.arange(13)) % 11
    return {"tokens": tokens, "positions": np.arange(12), "mask": np.triu(np.ones((12, 12), bool), 1)}


DATA = {"mlp": mlp_data, "lenet": lenet_data, "gpt": gpt_data}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", DATA)
def test_script_gives_the_same_losses_in_both_libraries(name, dtype):
    data = DATA[name](np.random.default_rng(0), dtype)
    theirs = script(name, "torch")
    torch.manual_seed(0)
    values = {key: torch.tensor(x) for key, x in data.items()}
    model = theirs["make"](values).to(getattr(torch, np.dtype(dtype).name))
    weights = {key: x.numpy().copy() for key, x in model.state_dict().items()}
    losses, others = theirs["train"](model, values)

    ours = script(name, "minigrad")
    values = {key: Tensor(x) for key, x in data.items()}
    model = ours["make"](values).to(dtype)
    assert not model.load_state_dict(weights, strict=False).missing_keys
    for actual, expected in zip(ours["train"](model, values), (losses, others), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert losses[-1] < 0.8 * losses[0]


def test_scripts_differ_in_one_line_from_minigrad():
    """No script names minigrad, and none checks which library runs."""
    for name in DATA:
        text = (FOLDER / f"{name}.py").read_text()
        assert "minigrad" not in text and "numpy" not in text
    assert {path.stem for path in FOLDER.glob("*.py")} == {*DATA, "__init__"}
    assert minigrad.nn.functional is minigrad.functional
