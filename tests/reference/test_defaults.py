"""Arguments with PyTorch's names have PyTorch's default values."""

import inspect

import pytest

import minigrad
from minigrad import distributed, nn, optim
from minigrad import functional as F

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


@pytest.mark.parametrize("name", [*distributed.__all__, "DistributedDataParallel", "DistributedSampler"])
def test_arguments_of_distributed_have_pytorchs_names_and_order(name):
    ours, theirs = (
        getattr(module.nn.parallel if "Parallel" in name else module.utils.data if "Sampler" in name else
                module.distributed, name)
        for module in (minigrad, torch)
    )  # fmt: skip
    if inspect.isclass(ours) and name in ("ReduceOp", "Work"):
        assert all(hasattr(theirs, member) for member in vars(ours) if member[0] != "_")
        return
    names, expected = (list(inspect.signature(function).parameters) for function in (ours, theirs))
    names = [n for n in names if (name, n) != ("DistributedDataParallel", "world")]
    assert names == [n for n in expected if n in names]
