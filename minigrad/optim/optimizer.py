"""L5: optimisers. `step` moves the parameters against their gradients, in place."""

from collections.abc import Iterable, Mapping
from math import sqrt
from typing import Any, ClassVar

import numpy as np

from minigrad import writes
from minigrad.backend import Array, array_module, plain, to_device
from minigrad.kernels import cuda
from minigrad.tensor import Tensor


class Optimizer:
    """Parameters in groups, each with settings of its own, and a state for each parameter.

    Args:
        params: Tensors, or groups: `{"params": [...], "lr": ..., ...}`, where what a group leaves out is the default.
        defaults: the settings, by name.
    """

    memory: ClassVar[tuple[str, ...]] = ()  # the names of what is kept for each parameter, from its first gradient on

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        entries: list[Any] = list(params)
        groups = entries if entries and isinstance(entries[0], dict) else [{"params": entries}]
        self.param_groups: list[dict[str, Any]] = []
        self.state: list[list[dict[str, Any]]] = []
        seen: set[int] = set()
        for group in groups:
            unknown = set(group) - {"params", "name", *defaults}
            tensors = list(group["params"])
            if unknown:
                raise ValueError(
                    f"{type(self).__name__}: a group has the unknown settings {sorted(unknown)}; "
                    f"it may have {sorted(defaults)}"
                )
            if any(not isinstance(p, Tensor) or not p.is_leaf for p in tensors):
                raise TypeError(f"{type(self).__name__}: optimises leaf Tensors, such as model.parameters()")
            if seen & {id(p) for p in tensors} or len({id(p) for p in tensors}) < len(tensors):
                raise ValueError(f"{type(self).__name__}: a parameter is in two groups, or twice in one")
            seen |= {id(p) for p in tensors}
            self.param_groups.append({**defaults, **group, "params": tensors})
            self.state.append([{} for _ in tensors])
        if not seen:
            raise ValueError(f"{type(self).__name__}: there are no parameters to optimise")

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        moves: list[cuda.optim.Move] = [
            (parameter.data, grad.data, state, group)
            for group, states in zip(self.param_groups, self.state, strict=True)
            for parameter, state in zip(group["params"], states, strict=True)
            if (grad := parameter.grad) is not None
        ]
        self.update_all(moves)
        writes.note(x for x, *_ in moves)

    def update_all(self, moves: list[cuda.optim.Move]) -> None:
        """Move all these parameters: what `update` takes, of each."""
        for x, grad, state, group in moves:
            self.update(x, grad, state, group)

    def update(self, x: Array, grad: Array, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """Move one parameter, in place. `state` is its memory, empty at first."""
        raise NotImplementedError

    def memory_of(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of what is kept for each parameter of this group: all, or none before its first gradient."""
        return self.memory

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def state_dict(self) -> dict[str, Array]:
        """The memory of every parameter as arrays, named `GROUP.NUMBER.NAME`, and each group's rate as `GROUP.lr`.

        They are the live arrays: copy them, or save them, before the next step.
        """
        arrays = {}
        for g, (group, states) in enumerate(zip(self.param_groups, self.state, strict=True)):
            arrays[f"{g}.lr"] = np.asarray(group["lr"])
            for i, state in enumerate(states):
                for name, value in state.items():
                    arrays[f"{g}.{i}.{name}"] = np.asarray(value) if isinstance(value, int) else to_device(value, "cpu")
        return arrays

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """Take back what `state_dict` gave, for the same parameters in the same order.

        Raises:
            ValueError: it is the state of other parameters. Nothing has been loaded then.
        """
        rates: list[Any] = [None] * len(self.param_groups)
        fresh: list[list[dict[str, Any]]] = [[{} for _ in states] for states in self.state]
        for key, value in state_dict.items():
            g, *rest = key.split(".")
            try:
                if rest == ["lr"]:
                    rates[int(g)] = value.item()
                    continue
                i, name = rest
                group = self.param_groups[int(g)]
                parameter, kept = group["params"][int(i)], self.memory_of(group)
                if name not in kept:
                    raise ValueError(f"{type(self).__name__} keeps {', '.join(kept)}")
                if lacking := [other for other in kept if f"{g}.{i}.{other}" not in state_dict]:
                    raise ValueError(f"with it belongs {', '.join(lacking)}, which is missing")
                if value.dtype.kind != "i" and value.shape != parameter.shape:
                    raise ValueError(f"it has shape {value.shape}, the parameter {parameter.shape}")
            except (IndexError, ValueError) as error:
                raise ValueError(f"{type(self).__name__}: {key!r} does not fit these parameters: {error}") from error
            counts = value.dtype.kind == "i"
            fresh[int(g)][int(i)][name] = value.item() if counts else to_device(plain(value).copy(), parameter.device)
        if None in rates:
            raise ValueError(f"{type(self).__name__}: this state lacks the rate of a group: it is of other parameters")
        self.state = fresh
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum: v <- momentum · v + g,  x <- x - lr · v;  g = ∂x + weight_decay · x.

    With `nesterov`, x <- x - lr · (g + momentum · v).  Sutskever et al. 2013.
    """

    memory = ("v",)

    def __init__(
        self, params: Any, lr: float = 1e-3, momentum: float = 0.0, *, weight_decay: float = 0.0, nesterov: bool = False
    ) -> None:
        _not_negative("SGD", lr=lr, momentum=momentum, weight_decay=weight_decay)
        if nesterov and not momentum:
            raise ValueError("SGD: nesterov needs a momentum above 0")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, defaults)

    def update(self, x: Array, grad: Array, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * x
        if group["momentum"]:
            if "v" not in state:
                state["v"] = grad.copy()
            else:
                state["v"] *= group["momentum"]
                state["v"] += grad
            grad = grad + group["momentum"] * state["v"] if group["nesterov"] else state["v"]
        x -= group["lr"] * grad


class AdamW(Optimizer):
    """Adam with decoupled weight decay.  Loshchilov and Hutter 2017, arXiv:1711.05101.

    m <- β₁ m + (1 - β₁) g,    v <- β₂ v + (1 - β₂) g²
    x <- (1 - lr · weight_decay) x - lr · m̂ / (√v̂ + eps),    m̂ = m / (1 - β₁ᵗ),   v̂ = v / (1 - β₂ᵗ)
    """

    memory = ("step", "m", "v")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, self.checked(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @classmethod
    def checked(cls, *, betas: tuple[float, float], **settings: float) -> dict[str, Any]:
        """The settings, by name, if they are in their ranges."""
        _not_negative(cls.__name__, **settings)
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise ValueError(f"{cls.__name__}: betas must be from 0 to below 1, got {betas}")
        return {"betas": betas, **settings}

    def update_all(self, moves: list[cuda.optim.Move]) -> None:
        """On a GPU in one launch, those that it is for."""
        fused: list[cuda.optim.Move] = []
        others: list[cuda.optim.Move] = []
        for move in moves:
            x, grad, state, _ = move
            if not state:
                if cuda.table.is_capturing():
                    raise RuntimeError(
                        "AdamW: a parameter has its first gradient in a step that is captured: warm up longer"
                    )
                xp = array_module(x)
                state.update(step=0, m=xp.zeros_like(x), v=xp.zeros_like(x))
            (fused if cuda.table.takes(x, grad, state["m"], state["v"]) else others).append(move)
        if others and cuda.table.is_capturing():
            x = others[0][0]
            raise RuntimeError(
                f"AdamW: a captured step takes float32 parameters and gradients without gaps, got {x.dtype} {x.shape}: "
                "the rate of any other would stay as it is now"
            )
        if fused:
            cuda.optim.adamw(fused)
        super().update_all(others)

    def update(self, x: Array, grad: Array, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """Move one parameter, in place. `state` is its memory, which `update_all` has begun."""
        xp, (beta1, beta2), m, v = array_module(x), group["betas"], state["m"], state["v"]
        state["step"] = t = state["step"] + 1
        m *= beta1
        m += (1 - beta1) * grad
        v *= beta2
        square = grad * grad
        square *= 1 - beta2
        v += square
        x *= 1 - group["lr"] * group["weight_decay"]
        denominator = xp.sqrt(v, out=xp.empty_like(v))
        denominator *= 1 / sqrt(1 - beta2**t)
        denominator += group["eps"]
        xp.divide(m, denominator, out=denominator)
        denominator *= group["lr"] / (1 - beta1**t)
        x -= denominator


def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients, in place, so that their common Euclidean norm is at most `max_norm`.

    Nothing waits for a GPU in this, so a step that is captured can have it.

    Returns:
        The norm before, a Tensor without axes. If it is not finite, the gradients are left as they are.
    """
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm_: max_norm must be above 0, got {max_norm}")
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    grads = [p.grad.data for p in parameters if p.grad is not None]
    if not grads:
        return Tensor(0.0)
    writes.note(grads)
    if cuda.table.takes_each(grads):
        return Tensor(cuda.optim.clip(grads, max_norm))
    xp = array_module(grads[0])
    total = xp.sqrt(sum((g * g).sum(dtype=np.float64) for g in grads))
    factor = xp.where(xp.isfinite(total), xp.minimum(max_norm / (total + 1e-6), 1), 1)
    for g in grads:
        g *= factor.astype(g.dtype)
    return Tensor(total)


def _not_negative(name: str, **settings: float) -> None:
    for setting, value in settings.items():
        if not value >= 0:
            raise ValueError(f"{name}: {setting} must not be negative, got {value}")
