"""L5: gradient checks: compare backward with central differences of forward, and check the contract of `Function`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minigrad._tensor import Tensor
from minigrad.autograd.function import Function, Partial
from minigrad.autograd.grad_mode import no_grad
from minigrad.autograd.node import Leaf, Node, Output
from minigrad.backend import Array, array_module, device_of, to_device

__tracebackhide__ = True  # pytest: a failing check shows the lines of the test, not those of this file

_Forward = Callable[[int, Array], Array]  # (i, x) -> the output with x as input i

_PYTORCH = {  # the options of torch.autograd.gradcheck that exist here, or that only choose how PyTorch checks
    "eps", "atol", "rtol", "raise_exception", "nondet_tol", "check_undefined_grad", "check_grad_dtypes", "fast_mode",
    "check_backward_ad", "masked",
}  # fmt: skip


class GradcheckError(AssertionError):
    """A backward does not match its forward, or violates the contract of `Function`."""


def gradcheck(
    function: Callable[..., Tensor],
    *arrays: Any,
    step: float = 1e-6,
    rtol: float = 1e-6,
    full_jacobian_below: int = 100,
    wrt: Sequence[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> bool | None:
    """Check the gradient of `function(*tensors, **options)` with respect to each float64 array among `arrays`.

    For each float64 input x, a random direction v is drawn, and for the output y a random gradient u. With J = ∂y/∂x,

        ⟨u, J v⟩ = ⟨Jᵀu, v⟩        left: J v ≈ dy = (f(x + h v) - f(x - h v)) / 2h;  right: backward computes Jᵀu

    The tolerance is rtol · (Σ|uᵢ dyᵢ| + Σ|(Jᵀu)ⱼ vⱼ|), relative to the terms of both sums, plus 10 ε/h · Σ|uᵢ yᵢ|, for
    the rounding of dy. If the error is larger, Σ|uᵢ tᵢ| is added, t = |dy(2h) - dy(h)|: the truncation error of dy(h)
    is O(h²), so t is about three times this error. If J has at most `full_jacobian_below` entries, every entry is
    compared too, so that errors cannot cancel, with tolerance rtol · max|J| + 10 ε/h · max|y|, plus the entry's t.

    Also checked: inputs and `grad_output` are not written to; a second backward, with `retain_graph` and with
    `grad_output` in another memory layout, gives the same gradients; and the checks of `watch`.

    PyTorch's calling form is supported too: `gradcheck(function, (x, y), eps=1e-6, atol=1e-5, rtol=1e-3)` checks the
    inputs that require gradients. An entry of J may then differ by atol + rtol · max|J|.

    Args:
        function: maps Tensors to one Tensor; must be differentiable near the inputs, and deterministic.
        arrays: the inputs, arrays or Tensors. Integers, booleans, Python numbers and None are not differentiated.
        step: the h above.
        wrt: indices of the inputs to differentiate; None means every float64 array.
        seed: the seed of the random directions.
        options: keyword arguments of `function`; wrap `function` in a lambda if names conflict with those above.

    Returns:
        None; in PyTorch's form True, or with raise_exception=False whether the gradient is correct.

    Raises:
        GradcheckError: the gradient is wrong. The message names the op, the input, and both values.
        TypeError: an input to differentiate is floating-point, but not float64; or `function` returns no Tensor.
    """
    _expect_no_class(function)
    if len(arrays) == 1 and isinstance(arrays[0], tuple | list):
        return _pytorch_form(function, arrays[0], {"rtol": rtol if rtol != 1e-6 else 1e-3, **options})
    _check(function, arrays, step, rtol, 0.0, full_jacobian_below, wrt, seed, options)
    return None


def _pytorch_form(function: Callable[..., Tensor], inputs: Sequence[Any], options: dict[str, Any]) -> bool:
    if unknown := set(options) - _PYTORCH:
        raise TypeError(f"gradcheck: this option of PyTorch's form is not supported: {min(unknown)}")
    wrt = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]
    if not wrt:
        raise ValueError("gradcheck: at least one of the inputs must require a gradient: Tensor(x, requires_grad=True)")
    step, atol, rtol = (float(options.get(name, default)) for name, default in
                        (("eps", 1e-6), ("atol", 1e-5), ("rtol", 1e-3)))  # fmt: skip
    try:
        _check(function, inputs, step, rtol, atol, 100, wrt, 0, {})
    except GradcheckError:
        if options.get("raise_exception", True):
            raise
        return False
    return True


def _check(
    function: Callable[..., Tensor],
    arrays: Sequence[Any],
    step: float,
    rtol: float,
    atol: float,
    full_jacobian_below: int,
    wrt: Sequence[int] | None,
    seed: int,
    options: dict[str, Any],
) -> None:
    """The checks of `gradcheck`; atol: an error allowed for each entry of the Jacobian."""
    arrays = tuple(x.data if isinstance(x, Tensor) else x for x in arrays)
    inputs = _differentiable(arrays, wrt)
    originals = [x.copy() if _is_array(x) else x for x in arrays]
    tensors = [Tensor(x, requires_grad=i in inputs) if _is_array(x) else x for i, x in enumerate(arrays)]

    y = function(*tensors, **options)
    _expect_tensor(function, y)
    name = _describe(function, y, arrays)
    _expect_unchanged(arrays, originals, f"{name}: forward wrote to")
    if not y.requires_grad:
        raise GradcheckError(f"{name}: the output does not require a gradient: it is detached from the inputs")
    if not bool(array_module(y.data).isfinite(y.data).all()):
        raise GradcheckError(
            f"{name}: the output has NaN or infinite values: choose inputs at which it is differentiable"
        )
    watch(y, *arrays)

    def gradients(u: Array) -> list[Array]:
        for i in inputs:
            tensors[i].grad = None
        y.backward(Tensor(u), retain_graph=True)
        return [_gradient(tensors[i], f"{name}, input {i}") for i in inputs]

    def forward(i: int, x: Array) -> Array:
        with no_grad():
            arguments = [Tensor(x) if j == i else t for j, t in enumerate(tensors)]
            return function(*arguments, **options).data

    random = np.random.default_rng(seed)
    u = to_device(random.standard_normal(y.shape), device_of(y.data))
    exact = gradients(u)
    _expect_unchanged(arrays, originals, f"{name}: backward wrote to")
    for i, first, second in zip(inputs, exact, gradients(u.copy(order="F")), strict=True):
        if not _close(first, second, rtol * max(_largest(first), _largest(u))):
            raise GradcheckError(
                f"{name}, input {i}: a second backward with retain_graph=True gives a different gradient: the first "
                "wrote to a saved array, or the result depends on the memory layout of grad_output"
            )

    for i, gradient in zip(inputs, exact, strict=True):
        v = to_device(random.standard_normal(gradient.shape), device_of(gradient))
        dy, v = _difference(forward, i, arrays[i], v, step)
        numeric, backward = float((u * dy).sum()), float((gradient * v).sum())
        size = float(abs(u * dy).sum() + abs(gradient * v).sum())
        tolerance = rtol * size + _rounding(float(abs(u * y.data).sum()), step)
        tolerance += atol * float(abs(u).sum() * abs(v).sum())
        if abs(numeric - backward) > tolerance:  # or truncation: x³ at 0
            tolerance += float(abs(u * _truncation(forward, i, arrays[i], v, step)).sum())
        if not abs(numeric - backward) <= tolerance:
            worst = _worst_entry(forward, gradients, inputs, i, y.data, arrays[i], step, 0.0, 0.0)
            raise GradcheckError(
                f"{name}: the gradient of input {i}, shape {arrays[i].shape}, is wrong: along a random direction "
                f"central differences give {numeric:.10g}, backward gives {backward:.10g} "
                f"(tolerance {tolerance:.1g}, step {step:g}).{worst}"
            )
        if arrays[i].size * y.data.size <= full_jacobian_below:
            worst = _worst_entry(forward, gradients, inputs, i, y.data, arrays[i], step, rtol, atol)
            if worst:
                raise GradcheckError(f"{name}: the Jacobian of input {i}, shape {arrays[i].shape}, is wrong.{worst}")


def watch(output: Tensor, *arrays: Any) -> None:
    """Check every later backward of the ops in the graph of `output` against the contract of `Function`.

    An op's backward must not write to `grad_output`, and must return one gradient for each input, in the input's dtype,
    and in a shape that the input's shape broadcasts to. A gradient may share memory with `grad_output`, but not with a
    saved array, another gradient, or one of `arrays`.

    Raises:
        GradcheckError: later, in `output.backward()`; the message names the op and the rule.
    """
    for node in graph(output):
        if not isinstance(node, Leaf | Output):
            node.backward = _watched(node, arrays)  # type: ignore[method-assign,assignment]


def graph(output: Tensor) -> Iterator[Node]:
    """All nodes of the graph of `output`, leaves included, each once, in a reproducible order."""
    nodes = [output.grad_fn] if output.grad_fn is not None else []
    found = set(nodes)
    for node in nodes:  # `nodes` grows during the loop
        yield node
        for edge in node.edges or ():
            if edge is not None and edge[0] not in found:
                found.add(edge[0])
                nodes.append(edge[0])


def _watched(node: Node, arrays: Sequence[Any]) -> Callable[[Any], Any]:
    original = node.backward

    def backward(grad_output: Any) -> Any:
        several = type(grad_output) is list  # one per output; then the engine accumulates out of place
        upstream = [grad for grad in (grad_output if several else [grad_output]) if grad is not None]
        edges, before = list(node.edges or ()), [grad.copy() for grad in upstream]
        saved = [*_arrays_in(list(vars(node).values())), *_arrays_in(arrays)]
        results = original(grad_output)
        saved += _arrays_in(list(vars(node).values()))
        gradients = results if type(results) is tuple else (results,)

        def check(condition: bool, rule: str) -> None:
            if not condition:
                raise GradcheckError(f"{node.op_name}.backward: {rule}")

        check(all(map(_equal, upstream, before)), "wrote to grad_output, which other ops may still read")
        count = f"must return one gradient per input, {len(edges)}, returned {len(gradients)}"
        check(len(gradients) == len(edges), count)
        for i, (edge, gradient) in enumerate(zip(edges, gradients, strict=True)):
            if edge is None or gradient is None:
                continue
            _, shape, dtype = edge
            partial = type(gradient) is Partial
            values = gradient.values if partial else gradient
            kind = type(values).__name__
            check(
                _is_array(values) and not isinstance(values, Tensor),
                f"gradient {i} must be an array, a Partial or None, got {kind}",
            )
            check(
                partial or _broadcasts_to(shape, values.shape),
                f"gradient {i} must have the input's shape {shape}, or a shape it broadcasts to, got {values.shape}",
            )
            check(values.dtype in (dtype, upstream[0].dtype), f"gradient {i} must be {dtype}, got {values.dtype}")
            check(
                any(_overlap(values, grad) for grad in upstream) or not any(_overlap(values, other) for other in saved),
                f"gradient {i} shares memory with an input, a saved array or another gradient, and the engine may "
                "accumulate into it: return a copy",
            )
            if not several:
                saved.append(values)
        return results

    return backward


def _differentiable(arrays: Sequence[Any], wrt: Sequence[int] | None) -> list[int]:
    """The indices of the inputs to differentiate."""
    inputs = [i for i, x in enumerate(arrays) if _is_array(x) and x.dtype.kind == "f" and (wrt is None or i in wrt)]
    for i in inputs:
        if arrays[i].dtype != np.float64:
            raise TypeError(
                f"gradcheck: input {i} is {arrays[i].dtype}, whose rounding errors exceed the differences; "
                "check in float64: x.astype(np.float64)"
            )
    if not inputs or (wrt is not None and len(inputs) < len(set(wrt))):
        raise ValueError(f"gradcheck: needs float64 arrays to differentiate, got {_shapes(arrays)} and wrt={wrt}")
    return inputs


def _gradient(tensor: Tensor, name: str) -> Array:
    """`tensor.grad` as an array, checked to have the shape and dtype of `tensor`."""
    if tensor.grad is None:
        raise GradcheckError(f"{name}: grad is None after backward")
    gradient, x = tensor.grad.data, tensor.data
    if gradient.shape != x.shape or gradient.dtype != x.dtype:
        raise GradcheckError(
            f"{name}: the gradient must have the input's {x.shape} {x.dtype}, got {gradient.shape} {gradient.dtype}"
        )
    return gradient


def _difference(forward: _Forward, i: int, x: Array, v: Array, step: float) -> tuple[Array, Array]:
    """The central difference of `forward` at x along v, and the effective v, after the rounding of x ± h v."""
    plus, minus = x + step * v, x - step * v
    return (forward(i, plus) - forward(i, minus)) / (2 * step), (plus - minus) / (2 * step)


def _truncation(forward: _Forward, i: int, x: Array, v: Array, step: float) -> Array:
    """t = |dy(2h) - dy(h)|, 0 if not finite: a bound on the truncation error of dy(h), the central difference along v.

    For y = xᵏ at x = 0 with k ≥ 3 odd, dy(h) = hᵏ⁻¹ is all error, and dy(2h) - dy(h) = (2ᵏ⁻¹ - 1) · dy(h).
    """
    change = abs(_difference(forward, i, x, v, 2 * step)[0] - _difference(forward, i, x, v, step)[0])
    return array_module(change).where(array_module(change).isfinite(change), change, 0)


def _rounding(size: float, step: float) -> float:
    """The tolerance for the rounding of a central difference of values of this size."""
    return 10 * float(np.finfo(np.float64).eps) / step * size


def _worst_entry(
    forward: _Forward,
    gradients: Callable[[Array], list[Array]],
    inputs: list[int],
    i: int,
    y: Array,
    x: Array,
    step: float,
    rtol: float,
    atol: float,
) -> str:
    """A sentence on the entry of ∂y/∂x with the largest error, or "" if all entries are within the tolerance.

    The full Jacobian needs 2 · x.size forwards and y.size backwards, so above 10,000 entries "" is returned.
    """
    if not 0 < x.size * y.size <= 10_000:
        return ""
    numeric, backward = np.empty((y.size, x.size)), np.empty((y.size, x.size))
    for column in range(x.size):
        dy, v = _difference(forward, i, x, _one_hot(x, column), step)
        numeric[:, column] = to_device((dy / v.sum()).reshape(-1), "cpu")  # v.sum(): the rounded step, over h
    for row in range(y.size):
        backward[row] = to_device(gradients(_one_hot(y, row))[inputs.index(i)].reshape(-1), "cpu")
    error, largest = abs(numeric - backward), max(abs(numeric).max(), abs(backward).max())
    tolerance = np.full(error.shape, atol + rtol * largest + _rounding(float(abs(y).max()), step))
    for k in np.flatnonzero((error > tolerance).any(axis=0)):
        truncation = _truncation(forward, i, x, _one_hot(x, int(k)), step)
        tolerance[:, k] += to_device(truncation.reshape(-1), "cpu")
    if (error <= tolerance).all():
        return ""
    excess = error - tolerance
    row, column = divmod(int(np.argmax(np.where(np.isnan(excess), np.inf, excess))), x.size)
    at_y, at_x = ([int(k) for k in np.unravel_index(flat, a.shape)] for flat, a in ((row, y), (column, x)))
    return (
        f" The entry with the largest error is ∂y{at_y} / ∂x{at_x}: "
        f"central differences give {numeric[row, column]:.10g}, backward gives {backward[row, column]:.10g}"
    )


def _one_hot(x: Array, index: int) -> Array:
    """Zeros in the shape of x, and 1 at `index` of the flattened array."""
    one = array_module(x).zeros(x.size)
    one[index] = 1
    return one.reshape(x.shape)


def _expect_no_class(function: Any) -> None:
    if isinstance(function, type) and issubclass(function, Function):
        raise TypeError(f"gradcheck: {function.__name__} is the class of an op: pass {function.__name__}.apply")


def _expect_tensor(function: Callable[..., Any], y: Any) -> None:
    if not isinstance(y, Tensor):
        name = getattr(function, "__name__", function)
        if isinstance(y, tuple | list):
            count = f"a {type(y).__name__} of {len(y)} values"
            raise TypeError(
                f"gradcheck: {name} must return one Tensor, got {count}: check each by itself, as in "
                "gradcheck(lambda x: f(x)[0], x)"
            )
        raise TypeError(f"gradcheck: {name} must return a Tensor, got {type(y).__name__}")


def _describe(function: Callable[..., Tensor], y: Tensor, arrays: Sequence[Any]) -> str:
    op = y.grad_fn.op_name if y.grad_fn is not None else "no recorded op"
    return f"{getattr(function, '__name__', function)} ({op}) of {_shapes(arrays)}"


def _shapes(arrays: Sequence[Any]) -> str:
    return "(" + ", ".join(f"{x.shape} {x.dtype}" if _is_array(x) else repr(x) for x in arrays) + ")"


def _expect_unchanged(arrays: Sequence[Any], originals: Sequence[Any], message: str) -> None:
    for i, (x, original) in enumerate(zip(arrays, originals, strict=True)):
        if _is_array(x) and not _equal(x, original):
            raise GradcheckError(f"{message} input {i}")


def _is_array(x: Any) -> bool:
    return hasattr(x, "dtype") and hasattr(x, "shape")


def _arrays_in(values: Sequence[Any]) -> list[Array]:
    """The arrays in `values`, also in nested lists and tuples."""
    found = []
    for value in values:
        found += _arrays_in(value) if isinstance(value, list | tuple) else [value] if _is_array(value) else []
    return found


def _overlap(a: Array, b: Array) -> bool:
    """True if a and b share memory; empty arrays never do."""
    return bool(device_of(a) == device_of(b) and array_module(a).shares_memory(a, b))


def _equal(a: Array, b: Array) -> bool:
    """True if all elements are equal; NaN equals NaN."""
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _close(a: Array, b: Array, tolerance: float) -> bool:
    """True if all elements differ by at most `tolerance`; NaN equals NaN."""
    return bool(array_module(a).allclose(a, b, rtol=0, atol=tolerance, equal_nan=True))


def _largest(a: Array) -> float:
    """The largest absolute value of the finite elements, or 0 if there are none."""
    finite = abs(a[array_module(a).isfinite(a)])
    return float(finite.max()) if finite.size else 0.0


def _broadcasts_to(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False
