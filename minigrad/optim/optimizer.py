"""L5: optimizers. `step` updates the parameters, in place."""

from collections.abc import Iterable, Mapping
from math import sqrt
from typing import Any, ClassVar

import numpy as np

from minigrad.autograd import writes
from minigrad.backend import Array, array_module, gemm, plain, to_device
from minigrad.backend.dtypes import FLOAT32, cast, is_floating, is_half
from minigrad.kernels import cuda
from minigrad.ops import checks
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
            unknown = set(group) - {"params", "name", "initial_lr", *defaults}
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
            self.check(self.param_groups[-1])
            self.state.append([{} for _ in tensors])
        if not seen:
            raise ValueError(f"{type(self).__name__}: there are no parameters to optimise")

    def check(self, group: Mapping[str, Any]) -> None:
        """Refuse settings of a group that are out of range."""
        for name in ("lr", "initial_lr", "momentum", "eps", "weight_decay"):
            if name in group:
                checks.not_negative(group[name], name, type(self).__name__)

    def step(self) -> None:
        """Update every parameter that has a gradient. Of a 16-bit parameter, update and state are in float32."""
        moves: list[cuda.optim.Move] = []
        half: list[tuple[Array, Array]] = []  # 16-bit parameters, and their copies in float32
        updated: list[Array] = []
        for group, states in zip(self.param_groups, self.state, strict=True):
            for parameter, state in zip(group["params"], states, strict=True):
                if (grad := parameter.grad) is None:
                    continue
                x, g = parameter.data, grad.data
                if is_half(x.dtype):
                    x, g = cast(x, FLOAT32), cast(g, FLOAT32)
                    half.append((parameter.data, x))
                moves.append((x, g, state, group))
                updated.append(parameter.data)
        self.update_all(moves)
        for data, x in half:
            data[...] = cast(x, data.dtype)
        writes.note(updated)

    def update_all(self, moves: list[cuda.optim.Move]) -> None:
        """Call `update` for each parameter; a fast path may update all at once."""
        for x, grad, state, group in moves:
            self.update(x, grad, state, group)

    def update(self, x: Array, grad: Array, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """Update one parameter, in place. `state` is empty at first."""
        raise NotImplementedError

    def memory_of(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the state of each parameter of this group, which exists from its first gradient on."""
        return self.memory

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def state_dict(self) -> dict[str, Array]:
        """The state of every parameter as arrays, named `GROUP.NUMBER.NAME`, and of every group `GROUP.lr`, with a
        schedule `GROUP.initial_lr`, and `GROUP.has_state`, (P,) bool: which parameters have had a gradient.

        They are the live arrays: copy them, or save them, before the next step.
        """
        arrays: dict[str, Array] = {}
        for g, (group, states) in enumerate(zip(self.param_groups, self.state, strict=True)):
            rates = {name: np.asarray(float(group[name])) for name in ("lr", "initial_lr") if name in group}
            arrays |= {f"{g}.{name}": rate for name, rate in rates.items()}
            arrays[f"{g}.has_state"] = np.array([bool(state) for state in states], np.bool_)
            for i, state in enumerate(states):
                for name, value in state.items():
                    arrays[f"{g}.{i}.{name}"] = np.asarray(value) if isinstance(value, int) else to_device(value, "cpu")
        return arrays

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, for the same parameters in the same order.

        Raises:
            ValueError: it is the state of other parameters, or not all of one. Nothing has been loaded then.
        """
        rates, self.state = self.read_state_dict(state_dict)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group.update(rate)

    def read_state_dict(
        self, state_dict: Mapping[str, Any]
    ) -> tuple[list[dict[str, float]], list[list[dict[str, Any]]]]:
        """What `load_state_dict` sets: the learning rates of each group, and the state of each parameter.

        A state without `GROUP.has_state`, from an older version, must be complete: it does not say which parameters
        it is of.
        """
        own = type(self).__name__
        arrays = {key: value.data if isinstance(value, Tensor) else plain(value) for key, value in state_dict.items()}
        if extra := {key.partition(".")[0] for key in arrays} - {str(g) for g in range(len(self.param_groups))}:
            raise ValueError(f"{own}: this state has a group {min(extra)!r}, here there are {len(self.state)} groups")
        rates: list[dict[str, float]] = []
        states: list[list[dict[str, Any]]] = []
        read: set[str] = set()
        for g, group in enumerate(self.param_groups):
            if f"{g}.lr" not in arrays:
                raise ValueError(f"{own}: this state lacks the rate of a group, {g}.lr: it is of other parameters")
            names = [name for name in ("lr", "initial_lr") if f"{g}.{name}" in arrays]
            rates.append({name: checks.not_negative(arrays[f"{g}.{name}"], f"{g}.{name}", own) for name in names})
            count, kept = len(group["params"]), self.memory_of(group)
            has_state = np.asarray(arrays.get(f"{g}.has_state", np.ones(count, np.bool_)))
            if has_state.shape != (count,):
                raise ValueError(f"{own}: group {g} has {has_state.size} parameters in this state, {count} here")
            states.append([{} for _ in range(count)])
            for i in has_state.nonzero()[0]:
                if missing := [name for name in kept if f"{g}.{i}.{name}" not in arrays]:
                    raise ValueError(
                        f"{own}: the state of parameter {g}.{i} does not fit these parameters: with it belongs "
                        f"{', '.join(missing)}, which is missing"
                    )
                states[g][i] = {name: self._read(f"{g}.{i}.{name}", arrays, group["params"][i]) for name in kept}
                read |= {f"{g}.{i}.{name}" for name in kept}
            read |= {f"{g}.{name}" for name in ("has_state", *names)}
            for key in arrays:
                if key.startswith(f"{g}.") and key not in read:
                    keeps = ", ".join(kept) or "nothing"
                    raise ValueError(f"{own}: {key!r} does not fit these parameters: {own} keeps {keeps}")
        return rates, states

    def _read(self, key: str, arrays: Mapping[str, Array], parameter: Tensor) -> Any:
        """One value of a parameter's state: a count, or an array in the dtype of the update."""
        value, misfit = arrays[key], f"{type(self).__name__}: {key!r} does not fit these parameters"
        if key.endswith(".step"):
            count = checks.not_negative(value, key, type(self).__name__)
            if count != int(count):
                raise ValueError(f"{misfit}: it must be a whole number, got {count}")
            return int(count)
        if value.shape != parameter.shape:
            raise ValueError(f"{misfit}: it has shape {value.shape}, the parameter {parameter.shape}")
        if not is_floating(value.dtype):
            raise ValueError(f"{misfit}: it must be floating-point, got {value.dtype}")
        with np.errstate(over="ignore"):  # which the next check reports
            array = cast(value, FLOAT32 if is_half(parameter.dtype) else parameter.dtype)
        if not array_module(array).isfinite(array).all():
            raise ValueError(f"{misfit}: it has values that are NaN or infinite in {array.dtype}")
        return to_device(array.copy() if array is value else array, parameter.device)


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum: v <- momentum · v + g,  x <- x - lr · v;  g = ∂x + weight_decay · x.

    With `nesterov`, x <- x - lr · (g + momentum · v).  Sutskever et al. 2013.
    """

    memory = ("v",)

    def memory_of(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Without momentum nothing."""
        return self.memory if float(group["momentum"]) else ()

    def __init__(
        self, params: Any, lr: float = 1e-3, momentum: float = 0.0, *, weight_decay: float = 0.0, nesterov: bool = False
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, defaults)

    def check(self, group: Mapping[str, Any]) -> None:
        super().check(group)
        if group["nesterov"] and not float(group["momentum"]):
            raise ValueError("SGD: nesterov needs a momentum above 0")

    def update(self, x: Array, grad: Array, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        lr, momentum, decay = float(group["lr"]), float(group["momentum"]), float(group["weight_decay"])
        if decay:
            grad = grad + decay * x
        if momentum:
            if "v" not in state:
                state["v"] = grad.copy()
            else:
                state["v"] *= momentum
                state["v"] += grad
            grad = grad + momentum * state["v"] if group["nesterov"] else state["v"]
        x -= lr * grad


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
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def check(self, group: Mapping[str, Any]) -> None:
        super().check(group)
        name, betas = type(self).__name__, tuple(group["betas"])
        if len(betas) != 2 or not all(0 <= checks.scalar(beta, "a beta", name) < 1 for beta in betas):
            raise ValueError(f"{name}: betas must be two numbers from 0 to below 1, got {betas}")

    def update_all(self, moves: list[cuda.optim.Move]) -> None:
        """Update all parameters; on a GPU those that the kernel supports in one launch."""
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
            (fused if cuda.table.fits(x, grad, state["m"], state["v"]) else others).append(move)
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
        """Update one parameter, in place. `update_all` has initialized `state`."""
        xp, (beta1, beta2), m, v = array_module(x), map(float, group["betas"]), state["m"], state["v"]
        lr, eps, decay = float(group["lr"]), float(group["eps"]), float(group["weight_decay"])
        state["step"] = t = state["step"] + 1
        m *= beta1
        m += (1 - beta1) * grad
        v *= beta2
        square = grad * grad
        square *= 1 - beta2
        v += square
        x *= 1 - lr * decay
        denominator = xp.sqrt(v, out=xp.empty_like(v))
        denominator *= 1 / sqrt(1 - beta2**t)
        denominator += eps
        xp.divide(m, denominator, out=denominator)
        denominator *= lr / (1 - beta1**t)
        x -= denominator


def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients, in place, so that their common Euclidean norm is at most `max_norm`.

    Squares are summed in float64, where no square of a float32 overflows or vanishes. Nothing waits for a GPU in this,
    so a step that is captured can have it.

    Returns:
        The norm before, a Tensor without axes, of the gradients' dtype; of several dtypes the widest, at least float32.
        If it is not finite in float64, the gradients are not changed.
    """
    max_norm = checks.scalar(max_norm, "max_norm", "clip_grad_norm_")
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm_: max_norm must be above 0, got {max_norm}")
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    grads = [p.grad.data for p in parameters if p.grad is not None]
    if not grads:
        return Tensor(0.0)
    writes.note(grads)
    if cuda.table.fits_each(grads):
        return Tensor(cuda.optim.clip(grads, max_norm))
    xp = array_module(grads[0])
    rows = (g.reshape(1, g.size).astype(np.float64) for g in grads)
    total = xp.sqrt(sum(gemm(row, row.T) for row in rows)).reshape(())
    factor = xp.where(xp.isfinite(total), xp.minimum(max_norm / (total + 1e-6), 1), 1)
    for g in grads:
        if is_half(g.dtype):
            g[...] = cast(cast(g, FLOAT32) * factor.astype(FLOAT32), g.dtype)
        else:
            g *= factor.astype(g.dtype)
    dtypes = {g.dtype for g in grads}
    widest = np.result_type(FLOAT32, *(dtype for dtype in dtypes if not is_half(dtype)))
    return Tensor(cast(total, grads[0].dtype if len(dtypes) == 1 else widest))
