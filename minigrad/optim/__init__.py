"""L5: optimisers, learning-rate schedules, gradient clipping."""

from minigrad.optim.optimizer import SGD, AdamW, Optimizer, clip_grad_norm_
from minigrad.optim.scaler import GradScaler
from minigrad.optim.schedule import WarmupCosine

__all__ = ["SGD", "AdamW", "GradScaler", "Optimizer", "WarmupCosine", "clip_grad_norm_"]
