"""L5: optimizers, learning-rate schedules, gradient clipping, loss scaling, and the moving average of a model."""

from minigrad.ops.updates import orthogonalize
from minigrad.optim.adamw import AdamW
from minigrad.optim.clip import clip_grad_norm_
from minigrad.optim.ema import EMA
from minigrad.optim.muon import Muon, matrices_apart
from minigrad.optim.optimizer import Optimizer
from minigrad.optim.scaler import GradScaler, scale_all
from minigrad.optim.schedule import WarmupCosine
from minigrad.optim.sgd import SGD

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
