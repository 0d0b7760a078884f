"""L5: optimizers, learning-rate schedules, gradient clipping, loss scaling, and the moving average of a model."""

from minigrad import absent
from minigrad.nn.utils import clip_grad_norm_
from minigrad.ops.updates import orthogonalize
from minigrad.optim import lr_scheduler
from minigrad.optim.adam import Adam
from minigrad.optim.adamw import AdamW
from minigrad.optim.ema import EMA
from minigrad.optim.muon import Muon, matrices_apart
from minigrad.optim.optimizer import Optimizer
from minigrad.optim.rmsprop import Adagrad, RMSprop
from minigrad.optim.scaler import GradScaler, scale_all
from minigrad.optim.schedule import WarmupCosine
from minigrad.optim.sgd import SGD

__all__ = [
    "EMA",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "GradScaler",
    "Muon",
    "Optimizer",
    "RMSprop",
    "WarmupCosine",
    "clip_grad_norm_",
    "lr_scheduler",
    "matrices_apart",
    "orthogonalize",
    "scale_all",
]

__getattr__ = absent.module_getattr(__name__)
