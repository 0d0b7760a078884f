"""Arguments with PyTorch's names have PyTorch's default values."""

import inspect

import pytest

from minigrad import functional as F
from minigrad import nn, optim

torch = pytest.importorskip("torch")

EXCEPTIONS = {
    ("TransformerEncoderLayer", "activation"): "F.relu, each library's own",
    ("Muon", "eps"): "AdamW's, which updates the parameters that are not matrices",
    ("Muon", "weight_decay"): "AdamW's default",
}
PAIRS = [
    (getattr(ours, name), getattr(theirs, name))
    for ours, theirs in ((F, torch.nn.functional), (nn, torch.nn), (optim, torch.optim), (optim, torch.amp))
    for name in vars(ours)
    if name[0] != "_" and callable(getattr(ours, name)) and hasattr(theirs, name)
]


def defaults(function):
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a C function without a signature
        return {}
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def test_defaults_equal_pytorch():
    shared = {
        (ours.__name__, name): (value, defaults(theirs)[name])
        for ours, theirs in PAIRS
        for name, value in defaults(ours).items()
        if name in defaults(theirs)
    }
    assert len(shared) > 50
    assert {at: pair for at, pair in shared.items() if pair[0] != pair[1]}.keys() == EXCEPTIONS.keys()
