"""L5: Muon: matrices move by orthogonal steps, all else by AdamW's."""

from collections.abc import Iterable, Mapping
from math import sqrt
from typing import Any

import numpy as np

from minigrad.backend import Array, array_module, gemm
from minigrad.backend.dtypes import cast, upcast
from minigrad.kernels import cuda
from minigrad.optim.optimizer import AdamW, Optimizer
from minigrad.tensor import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalize(G: Array, steps: int = 5, eps: float = 1e-7) -> Array:
    """About U Vᵀ of the singular value decomposition G = U S Vᵀ: all singular values become about 1. (A, B) -> (A, B).

    By products alone, which a GPU is best at, where the decomposition is slow (Newton and Schulz's iteration):

        X <- G / ‖G‖                                              of norm 1, so that no singular value is above 1
        X <- a X + b (X Xᵀ) X + c (X Xᵀ)² X                       `steps` times

    which leaves U and V as they are and makes of each singular value σ <- a σ + b σ³ + c σ⁵. With these a, b, c, five
    steps bring all from 0.005 to 1 into 0.68 to 1.16: they do not converge to 1, but small values rise fastest.

    ‖G‖ is summed in float64, where no square of a float32 overflows; of a 16-bit G, all of it is in float32.

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", kellerjordan.github.io/posts/muon.
    """
    (G32,), xp = upcast([G]), array_module(G)
    wide = G.shape[0] <= G.shape[1]
    X = G32 if wide else G32.T  # the smaller product is X Xᵀ then
    norm = xp.sqrt(xp.square(X, dtype=np.float64).sum())
    X = (X / xp.maximum(norm, float(eps))).astype(X.dtype)
    for _ in range(steps):
        XX = gemm(X, X.T)
        X = _A * X + gemm(_B * XX + _C * gemm(XX, XX), X)
    return cast(X if wide else X.T, G.dtype)


class Muon(AdamW):
    """For matrices W (A, B), the step of momentum made orthogonal; for the parameters of other groups, AdamW.

        m <- μ m + (1 - μ) g,    u = μ m + (1 - μ) g
        W <- (1 - lr · weight_decay) W - lr · 0.2 √max(A, B) · orthogonalize(u)

    A gradient of a matrix is mostly of a few directions; orthogonal, the step is as long in all of them. Its entries
    have a root mean square of about 1/√max(A, B): times the factor 0.2 √max(A, B) it is about as large as a step of
    AdamW, so that learning rates and weight decay of AdamW do for both.  Jordan et al. 2024; the factor: Liu et al.
    2025, arXiv:2502.16982. torch.optim.Muon with adjust_lr_fn="match_rms_adamw" is the first half of this, in bfloat16.

    A step of a matrix cannot be a part of a CUDA graph: its rate is a number of the host.

    Args:
        params: groups; those with `"muon": True` are of matrices. `matrices_apart` makes them.
        momentum: μ.
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
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        Optimizer.__init__(self, params, {**settings, "momentum": momentum, "muon": False})

    def check(self, group: Mapping[str, Any]) -> None:
        super().check(group)
        if not float(group["momentum"]) < 1:
            raise ValueError(f"Muon: momentum must be from 0 to below 1, got {group['momentum']}")
        wrong = [p.shape for p in group["params"] if group["muon"] and p.ndim != 2]
        if wrong:
            raise ValueError(f"Muon: a group with muon=True is of matrices, got a parameter of shape {wrong[0]}")

    def memory_of(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Of a matrix m alone."""
        return ("m",) if group["muon"] else super().memory_of(group)

    def update_all(self, moves: list[cuda.optim.Move]) -> None:
        """Matrices one by one, the others as AdamW does."""
        matrices = [move for move in moves if move[3]["muon"]]
        if matrices and cuda.table.is_capturing():
            raise RuntimeError("Muon: a step of a matrix cannot be a part of a CUDA graph; run it launch by launch")
        for x, grad, state, group in matrices:
            self.move_matrix(x, grad, state, group)
        super().update_all([move for move in moves if not move[3]["muon"]])

    def move_matrix(self, x: Array, grad: Array, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """Move one matrix, in place."""
        mu, lr, decay = (float(group[name]) for name in ("momentum", "lr", "weight_decay"))
        if "m" not in state:
            state["m"] = array_module(x).zeros_like(x)
        m = state["m"]
        m *= mu
        m += (1 - mu) * grad
        x *= 1 - lr * decay
        x -= lr * 0.2 * sqrt(max(x.shape)) * orthogonalize(mu * m + (1 - mu) * grad)


def matrices_apart(groups: Iterable[Mapping[str, Any]], others: Iterable[Tensor] = ()) -> list[dict[str, Any]]:
    """Each group in two: its matrices with `"muon": True`, and the rest, with it what `others` names.

    `others` are matrices that are none of a hidden layer: embeddings and the head, for which Muon is not meant.
    """
    rest = {id(p) for p in others}
    apart: list[dict[str, Any]] = []
    for group in groups:
        every = list(group["params"])  # which may be read once only, as `model.parameters()`
        for muon in (True, False):
            params = [p for p in every if (p.ndim == 2 and id(p) not in rest) == muon]
            if params:
                apart.append({**group, "params": params, "muon": muon})
    return apart
