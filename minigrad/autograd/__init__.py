"""L1: reverse-mode automatic differentiation. Read `function.py`, then `plain.py`, then `tape.py`."""

import sys
from typing import Any

from minigrad import absent
from minigrad.autograd.anomaly import detect_anomaly
from minigrad.autograd.function import Function
from minigrad.autograd.grad_mode import enable_grad, inference_mode, no_grad, set_grad_enabled
from minigrad.autograd.gradients import backward, grad

__all__ = [
    "Function",
    "backward",
    "detect_anomaly",
    "enable_grad",
    "grad",
    "inference_mode",
    "no_grad",
    "set_grad_enabled",
]


def __getattr__(name: str) -> Any:
    """Explain the names of `torch.autograd` that do not exist here."""
    absent.refuse(sys.modules[__name__], "module 'minigrad.autograd'", name)
