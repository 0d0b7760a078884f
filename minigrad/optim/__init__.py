"""L5: optimisers, learning-rate schedules, gradient clipping, the moving average of a model."""

from minigrad.optim.ema import EMA
from minigrad.optim.muon import Muon, matrices_apart, orthogonalize
from minigrad.optim.optimizer import SGD, AdamW, Optimizer, clip_grad_norm_
from minigrad.optim.scaler import GradScaler, scale_all
from minigrad.optim.schedule import WarmupCosine

__all__ = [
    "EMA",
    "SGD",
    "AdamW",
    "GradScaler",
    "Muon",
    "Optimizer",
    "WarmupCosine",
    "clip_grad_norm_",
    "matrices_apart",
    "orthogonalize",
    "scale_all",
]
