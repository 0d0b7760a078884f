"""L7: every setting of a run, in one frozen dataclass, and the defaults. Imports no NumPy: `--help` is immediate."""

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """The settings of a run. Their names are those of the flags, and timm's where timm has the flag."""

    recipe: str
    model: str
    initial_checkpoint: str  # pretrained weights; "none": random initialisation
    dataset: str
    data_dir: str
    download: bool
    img_size: int
    train_num_samples: int | None  # None: all
    val_num_samples: int | None
    epochs: int
    batch_size: int
    validation_batch_size: int
    opt: str
    lr: float
    weight_decay: float
    layer_decay: float
    warmup_epochs: float
    grad_accum_steps: int
    clip_grad: float  # 0: no clipping
    skip_nonfinite: bool
    smoothing: float
    drop_path: float
    no_aug: bool
    hflip: float
    crop_padding: int
    crop_padding_mode: str
    aa: str  # or "none"
    cutout: int
    reprob: float
    remode: str
    mixup: float
    cutmix: float
    mixup_prob: float
    mixup_switch_prob: float
    aug_repeats: int
    model_ema: bool
    model_ema_decay: float
    model_ema_warmup: bool
    seed: int
    device: str
    threads: int
    graph: bool
    amp: bool
    amp_dtype: str
    tf32: bool
    tune_cpu: bool
    output: str
    eval: str  # the checkpoint to evaluate; "none": train
    resume: str  # the state file to continue from; "none": a new run
    checkpoint_format: str

    @property
    def why_no_graph(self) -> str:
        """Why a step cannot be a CUDA graph, and which flag to change; empty if it can."""
        float16 = self.amp and self.amp_dtype == "float16"
        reasons = {
            "CUDA graphs are for a GPU: --device cuda": self.device == "cpu",
            "a graph is captured in one thread: --threads 1": self.threads > 1,
            "Muon's learning rates are computed on the host: --opt adamw": self.opt == "muon",
            "loss scaling of float16 runs on the host: --amp-dtype bfloat16 needs none": float16,
            "--skip-nonfinite reads back each step, which a graph cannot: --no-skip-nonfinite": self.skip_nonfinite,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")


COMMON: dict[str, Any] = {
    "recipe": "none",
    "model": "vit_nano_cifar",
    "initial_checkpoint": "none",
    "dataset": "shapes",
    "data_dir": "data",
    "download": False,
    "img_size": 32,
    "train_num_samples": None,
    "val_num_samples": None,
    "validation_batch_size": 500,
    "opt": "adamw",
    "weight_decay": 0.05,
    "layer_decay": 1.0,
    "grad_accum_steps": 1,
    "clip_grad": 1.0,
    "skip_nonfinite": False,
    "drop_path": 0.0,
    "no_aug": False,
    "crop_padding_mode": "constant",
    "aa": "none",
    "cutout": 0,
    "reprob": 0.0,
    "remode": "pixel",
    "mixup": 0.0,
    "cutmix": 0.0,
    "mixup_prob": 1.0,
    "mixup_switch_prob": 0.5,
    "aug_repeats": 1,
    "model_ema": False,
    "model_ema_decay": 0.9998,
    "model_ema_warmup": True,
    "seed": 0,
    "device": "cpu",
    "threads": min(2, os.cpu_count() or 1),
    "amp": False,
    "amp_dtype": "bfloat16",
    "tf32": True,
    "tune_cpu": True,
    "eval": "none",
    "resume": "none",
    "checkpoint_format": "npz",
}
_PHOTOS = {
    "epochs": 50, "batch_size": 128, "lr": 1e-3, "warmup_epochs": 5.0, "smoothing": 0.1, "hflip": 0.5,
    "crop_padding": 4,
}  # fmt: skip
BY_DATASET: dict[str, dict[str, Any]] = {
    "shapes": {
        "epochs": 4,
        "batch_size": 32,
        "lr": 3e-3,
        "warmup_epochs": 0.5,
        "smoothing": 0.0,
        "hflip": 0.0,
        "crop_padding": 0,
    },
    "cifar10": _PHOTOS,
    "cifar100": _PHOTOS,
    "folder": _PHOTOS,
}
"""The defaults: COMMON for every run, BY_DATASET for one dataset."""
