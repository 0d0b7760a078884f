"""L5: Muon: orthogonalized momentum for matrices and filters, AdamW for all other parameters."""

from collections.abc import Iterable, Mapping
from typing import Any

from minigrad._tensor import Tensor
from minigrad.backend import Array, array_module
from minigrad.backend.capture import is_capturing
from minigrad.ops.updates import Update, muon
from minigrad.optim.adamw import AdamW
from minigrad.optim.optimizer import Optimizer


class Muon(AdamW):
    """Orthogonalized momentum for matrices, AdamW for the parameters of other groups.  Jordan et al. 2024.

    The formula and its implementation: `muon` and `orthogonalize` in `minigrad/ops/updates.py`. Matrices can use
    AdamW's learning rate and weight decay. The filters of a convolution, (O, I, ...), are a matrix (O, I · ...).
    torch.optim.Muon with adjust_lr_fn="match_rms_adamw" has the same update of matrices, but orthogonalizes in
    bfloat16, refuses filters, and has no AdamW.

    A CUDA graph cannot contain the update of a matrix: the learning rate is a Python number.

    Args:
        params: groups, as `matrices_apart` returns them; a group with `"muon": True` contains matrices and filters.
        momentum: μ, the decay of the momentum buffer.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        Optimizer.__init__(self, params, {**defaults, "momentum": momentum, "muon": False})

    def check(self, group: Mapping[str, Any]) -> None:
        super().check(group)
        if not float(group["momentum"]) < 1:
            raise ValueError(f"Muon: momentum must be from 0 to below 1, got {group['momentum']}")
        wrong = [p.shape for p in group["params"] if group["muon"] and p.ndim < 2]
        if wrong:
            raise ValueError(
                f"Muon: a group with muon=True is for matrices and filters, got a parameter of shape {wrong[0]}"
            )

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The momentum buffer "m" for matrices; else the names of AdamW."""
        return ("m",) if group["muon"] else super().state_names(group)

    def update_all(self, updates: list[Update]) -> None:
        matrices = [update for update in updates if update[3]["muon"]]
        if matrices and is_capturing():
            raise RuntimeError(
                "Muon: a CUDA graph cannot contain the update of a matrix, as its learning rate would be a constant: "
                "run the step without a graph"
            )
        for x, grad, state, group in matrices:
            self.update(x, grad, state, group)
        super().update_all([update for update in updates if not update[3]["muon"]])

    def update(self, x: Array, grad: Array, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """Update one matrix, or filters, in place."""
        if "m" not in state:
            state["m"] = array_module(x).zeros_like(x)
        muon(x, grad, state["m"], float(group["lr"]), float(group["momentum"]), float(group["weight_decay"]))


def matrices_apart(groups: Iterable[Mapping[str, Any]], others: Iterable[Tensor] = ()) -> list[dict[str, Any]]:
    """Split each group into its matrices and filters, with `"muon": True`, and its other parameters.

    Muon is not meant for embeddings and the head: parameters in `others` count as other parameters. So do parameters of
    three and more axes with one row or one input channel, which give an orthogonal update no meaning: position
    embeddings (1, N, D), and the filters of depthwise convolutions (C, 1, H, W).
    """
    rest = {id(p) for p in others}
    apart: list[dict[str, Any]] = []
    for group in groups:
        every = list(group["params"])  # may be an iterator, such as `model.parameters()`
        for is_matrix in (True, False):
            params = [p for p in every if (_is_matrix(p) and id(p) not in rest) == is_matrix]
            if params:
                apart.append({**group, "params": params, "muon": is_matrix})
    return apart


def _is_matrix(p: Tensor) -> bool:
    """Whether `p` is a matrix, or the filters (O, I, ...) of a convolution that mixes channels."""
    return p.ndim == 2 or (p.ndim > 2 and min(p.shape[:2]) > 1)
