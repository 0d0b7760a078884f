"""no_grad and enable_grad: threads, nesting, decorated functions and generators."""

import threading

import pytest

import minigrad
from minigrad import Tensor, enable_grad, no_grad
from minigrad.autograd import grad_mode
from tests.autograd.test_tape import leaf


def test_grad_mode_is_per_thread_and_nests():
    seen = {}
    with minigrad.no_grad():
        thread = threading.Thread(target=lambda: seen.setdefault("other", minigrad.is_grad_enabled()))
        thread.start()
        thread.join()
        with minigrad.enable_grad():
            seen["inner"] = minigrad.is_grad_enabled()
        seen["after"] = minigrad.is_grad_enabled()
        assert not (leaf(1.0) * 2).requires_grad
    assert seen == {"other": True, "inner": True, "after": False}
    assert minigrad.is_grad_enabled()

    @minigrad.no_grad()
    def frozen(depth: int) -> bool:
        return frozen(depth - 1) if depth else minigrad.is_grad_enabled()

    assert frozen(3) is False and minigrad.is_grad_enabled()


def test_decorated_generators_run_in_grad_mode():
    x, log = leaf(1.0), []

    @no_grad()
    def numbers(count):
        """Counts."""
        try:
            for i in range(count):
                log.append((yield (i, (x * 2).requires_grad)))
        except KeyError:
            log.append("caught")
            yield "after", (x * 2).requires_grad
        finally:
            log.append(minigrad.is_grad_enabled())
        return "end"

    steps = numbers(2)
    assert next(steps) == (0, False) and (x * 2).requires_grad
    assert steps.send("sent") == (1, False) and minigrad.is_grad_enabled()
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value == "end" and log == ["sent", None, False] and minigrad.is_grad_enabled()
    steps = numbers(2)
    next(steps)
    assert steps.throw(KeyError) == ("after", False)
    steps.close()
    assert log[3:] == ["caught", False] and minigrad.is_grad_enabled()
    assert numbers.__name__ == "numbers" and numbers.__doc__ == "Counts."


def test_no_grad_decorator_without_parentheses():
    @minigrad.no_grad
    def double(x):
        return x * 2

    x = leaf(1.0)
    assert not double(x).requires_grad and (x * 2).requires_grad


def test_ops_are_recorded_after_blocks_that_raise():
    """Ops are recorded again after a block that raises, and after a suspended generator is closed."""

    def generator():
        with no_grad():
            yield 1

    before = grad_mode.grad_blocks  # tests run within `enable_grad`
    for block in (no_grad, enable_grad):
        with pytest.raises(ZeroDivisionError), block(), no_grad():
            assert grad_mode.grad_blocks == before + 2
            1 / 0  # noqa: B018
    suspended = generator()
    next(suspended)
    assert grad_mode.grad_blocks == before + 1
    suspended.close()
    assert grad_mode.grad_blocks == before and (Tensor([1.0], requires_grad=True) * 2).requires_grad
