"""Write the tables of minigrad/PYTORCH.md, from the code:  python -m tests.reference.page

what differs      both libraries run each line of DIFFERENCES; the table has both results
what is missing   the table of `minigrad/absent.py`
"""

import re
from pathlib import Path
from typing import Any

import minigrad
from minigrad.absent import ABSENT
from tests.reference.statements import value_of

PAGE = Path(minigrad.__file__).with_name("PYTORCH.md")

DIFFERENCES = {
    "type(x.data).__name__": "`x.data` is the array itself: NumPy or CuPy code on `x.data` runs without a conversion",
    "torch.Tensor([1, 2]).dtype": "`Tensor(data)` keeps the dtype of the data, as `torch.tensor` does",
    "type(x.shape).__name__": "a shape is a plain tuple",
    "repr(torch.ones(2))": "a tensor is shown as the class that it is",
    "type(x.dtype).__name__": "dtypes are NumPy's; `x.is_floating_point()` and `torch.finfo(x.dtype)` are PyTorch's",
    "repr(x.device)": "a device is a string with the attributes `type` and `index`; the only GPU is `cuda:0`",
    "w.numpy().flags.writeable": "`numpy()` of a tensor that requires a gradient is a read-only view, not an error",
    "torch.zeros(2) + torch.zeros(3)": "shapes that do not fit are a ValueError, as in NumPy",
    "torch.manual_seed(0); torch.rand(1).item()": "another generator: Philox, the same values on CPU and GPU",
    "a = w * 1; v = a.view(4); a += 1; (v == a.view(4)).all().item()":
        "a recorded in-place op changes the tensor alone: views keep the values from before",
    "a = w.exp(); a.add_(1); a.sum().backward(); w.grad is not None":
        "and so a value that backward needs is still there",
    "torch.autograd.grad(w.sum(), w, create_graph=True)[0].shape":
        "first order only: `backward` computes on arrays, and is not differentiable",
    "len(torch.nn.BatchNorm1d(2).state_dict())":
        "`num_batches_tracked` exists only with momentum=None; a `state_dict` may have the name or not",
    "torch.nn.Linear(2, 3).load_state_dict({})": "a `state_dict` that does not fit is a ValueError",
    "torch.nn.MultiheadAttention(7, 2)": "an invalid argument is a ValueError",
    "type(torch.optim.SGD([w], lr=0.1).state).__name__":
        "the state is a list for each group, not a dict by parameter; `state_dict()` has PyTorch's form",
    "torch.optim.SGD([w], lr=0.1, differentiable=True).defaults['lr']":
        "differentiable is refused; foreach and fused have no effect",
}  # fmt: skip


def shown(value: Any) -> str:
    """A result as a cell of the table: errors by their type."""
    text = type(value).__name__ if isinstance(value, Exception) else str(value)
    return text.removeprefix("torch.").replace("|", "\\|")


def differences(torch: Any) -> str:
    """The table of lines with different results."""
    rows = [
        f"| `{line}` | {shown(value_of(torch, line))} | {shown(value_of(minigrad, line))} | {why} |"
        for line, why in DIFFERENCES.items()
    ]
    return "\n".join(["| line | PyTorch | minigrad | why |", "|---|---|---|---|", *rows])


def missing() -> str:
    """The table of PyTorch's names that do not exist here."""
    rows = []
    for reason, names in ABSENT.items():
        by_use: dict[str, list[str]] = {}
        for name, use in names.items():
            by_use.setdefault(use, []).append(f"`{name}`")
        rows += [f"| {', '.join(group)} | {reason} | {use} |" for use, group in by_use.items()]
    return "\n".join(["| names | why not | use |", "|---|---|---|", *rows])


def written(text: str, torch: Any) -> str:
    """The page with its tables made anew: each stands between the markers `<!-- NAME -->` and `<!-- end -->`."""
    for name, table in (("differences", differences(torch)), ("missing", missing())):
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
        text = re.sub(pattern, lambda found, table=table: found[1] + table + found[2], text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    import torch

    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), torch), encoding="utf-8")
