"""L5: residual connections: with layer scale, stochastic depth and the norm that follows; after a norm, with the ReLU
that follows."""

from typing import TypeGuard, TypeVar

from minigrad import functional as F
from minigrad._tensor import Tensor
from minigrad.nn.hooks import has_hooks
from minigrad.nn.layers import DropPath
from minigrad.nn.module import Module
from minigrad.nn.norm import GroupNorm, LayerNorm

AnyModule = TypeVar("AnyModule", bound=Module)


def residual_add(x: Tensor, branch: Tensor, drop_path: Module, gamma: Tensor | None = None) -> Tensor:
    """x + drop_path(gamma * branch)

    For an `nn.DropPath` without a hook, the op `Residual` computes the sum in one pass over memory on a GPU; any other
    module is called separately.

    Shapes: x, branch (N, ..., C); gamma, the layer scale, (C,) or None.
    """
    if is_plain(drop_path, DropPath):
        return F.residual(x, branch, gamma, drop_path.p, drop_path.training)
    return x + drop_path(branch if gamma is None else gamma * branch)


def residual_add_norm(x: Tensor, branch: Tensor, drop_path: Module, norm: Module) -> tuple[Tensor, Tensor]:
    """The sum, and its norm for the next branch:

        x = x + drop_path(branch)
        y = norm(x)

    For an `nn.DropPath` and an `nn.LayerNorm` over the last axis, the op `ResidualLayerNorm` computes both lines in one
    pass over memory on a GPU, with the same float32 values. Other modules, and modules with a hook, run separately.

    Shapes: x, branch, y (N, ..., C).
    """
    if is_plain(drop_path, DropPath) and is_plain(norm, LayerNorm) and len(norm.normalized_shape) == 1:
        weight, bias = norm.weight, norm.bias
        if weight is not None and bias is not None:
            return F.residual_layer_norm(x, branch, weight, bias, norm.eps, drop_path.p, drop_path.training)
    x = residual_add(x, branch, drop_path)
    return x, norm(x)


def norm_relu(x: Tensor, norm: Module, shortcut: Tensor | None = None) -> Tensor:
    """relu(norm(x)), or relu(norm(x) + shortcut)

    For an `nn.GroupNorm`, the op `GroupNormReLU` computes the line in one pass over memory, with the same float32
    values. Other modules, and modules with a hook, run separately.

    Shapes: x, shortcut (N, C, ...).
    """
    if is_plain(norm, GroupNorm):
        return F.group_norm_relu(x, norm.num_groups, norm.weight, norm.bias, norm.eps, shortcut)
    y = norm(x)
    return F.relu(y if shortcut is None else y + shortcut)


def is_plain(module: Module, kind: type[AnyModule]) -> TypeGuard[AnyModule]:
    """True if a call of `module` runs `kind.forward` alone: no subclass, no hook, no checkpointing."""
    return type(module) is kind and not (has_hooks(module) or module.checkpointing or "forward" in vars(module))
