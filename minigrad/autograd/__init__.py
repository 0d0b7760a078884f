"""L1: reverse-mode automatic differentiation. Read `function.py`, then `plain.py`, then `tape.py`."""

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

__getattr__ = absent.module_getattr(__name__)
