"""L7: the settings of a run. Each field declares its flag, in the order and groups of `--help`.

Imports no NumPy: `--help` is immediate.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from train.config import recipes
from train.config.flags import Flag, flag, option


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run. A setting has the name of its flag, which is timm's name where timm has the flag."""

    recipe: str = flag(
        "preset settings, listed below",
        default="none",
        metavar="NAME",
        choices=("none", *recipes.NAMES),
        group="what to train",
    )
    model: str = flag("a name that python -m models lists", default="vit_nano_cifar", metavar="NAME")
    initial_checkpoint: str = flag("weights to start from: a file or a run", default="none", metavar="FILE")
    pretrained: bool = flag("start from published weights of the model", default=False, negatable=False)
    dataset: str = flag(
        "shapes, cifar10, cifar100 or folder",
        default="shapes",
        metavar="NAME",
        choices=("shapes", "cifar10", "cifar100", "folder"),
    )
    data_dir: str = flag("dataset folder or archive, or its parent", default="data", metavar="DIR")
    download: bool = flag("download to --data-dir if missing", default=False, negatable=False)
    img_size: int = flag("image height and width, for folder", default=32, metavar="N", at_least=1)
    val_split: float = flag("fraction of DIR/CLASS/ to test on", default=0.0, metavar="P", at_least=0, below=1)
    skip_bad_images: bool = flag("leave out damaged image files, and list them", default=False)
    fast_jpeg: bool = flag("decode large JPEGs at reduced size", default=False)
    cache: bool = flag("keep decoded images in runs/cache", default=True)
    train_num_samples: int | None = flag("use only the first N training images", metavar="N", at_least=1)
    val_num_samples: int | None = flag("use only the first N test images", metavar="N", at_least=1)

    epochs: int = flag(
        "number of epochs",
        default=50,
        shapes=4,
        metavar="N",
        at_least=1,
        group="how to train it (learning rate: linear warm-up, cosine decay)",
    )
    patience: int = flag("stop after N epochs without a new best; 0: off", default=0, metavar="N", at_least=0)
    batch_size: int = flag("images per batch", default=128, shapes=32, metavar="N", at_least=1)
    grad_accum_steps: int = flag("batches accumulated per optimizer step", default=1, metavar="N", at_least=1)
    opt: str = flag(
        "adamw, adam, sgd or muon for hidden layers",
        default="adamw",
        metavar="NAME",
        choices=("adamw", "adam", "sgd", "muon"),
    )
    momentum: float = flag("momentum of sgd, Nesterov's; 0: none", default=0.9, metavar="M", at_least=0, below=1)
    lr: float = flag("peak learning rate", default=1e-3, shapes=3e-3, metavar="RATE", above=0)
    warmup_epochs: float = flag("linear warm-up, in epochs", default=5.0, shapes=0.5, metavar="N", at_least=0)
    weight_decay: float = flag("weight decay; not biases, norms, embeddings", default=0.05, metavar="D", at_least=0)
    layer_decay: float = flag("layer-wise learning-rate decay", default=1.0, metavar="RATIO", above=0, at_most=1)
    clip_grad: float = flag("maximum gradient norm; 0: no clipping", default=1.0, metavar="NORM", at_least=0)
    skip_nonfinite: bool = flag("skip and count steps with NaN or Inf", default=False)
    smoothing: float = flag("label smoothing", default=0.1, shapes=0.0, metavar="EPS", at_least=0, below=1)
    drop_path: float = flag(
        "stochastic depth: drop rate of the last block", default=0.0, metavar="P", at_least=0, below=1
    )
    model_ema: bool = flag("evaluate and save an EMA of the weights", default=False)
    model_ema_decay: float = flag(
        "EMA decay: averages 1 / (1 - D) steps", default=0.9998, metavar="D", at_least=0, below=1
    )
    model_ema_warmup: bool = flag("EMA decay at most (1 + step) / (10 + step)", default=True)
    seed: int = flag("random seed; the same seed repeats a run", default=0, metavar="N", at_least=0, at_most=2**31 - 2)

    no_aug: bool = flag(
        "no augmentation",
        default=False,
        negatable=False,
        group="data augmentation (train/data/augment.py); P: probability, 0: off",
    )
    hflip: float = flag("horizontal flip", default=0.5, shapes=0.0, metavar="P", at_least=0, at_most=1)
    crop_padding: int = flag("pad by N, crop at random", default=4, shapes=0, metavar="N", at_least=0)
    crop_padding_mode: str = flag(
        "pad with: constant (0) or reflect", default="constant", metavar="MODE", choices=("constant", "reflect")
    )
    scale: tuple[float, float] = flag(
        "random resized crop of this area; 1 1: off", default=(1.0, 1.0), metavar=("MIN", "MAX"), above=0, at_most=1
    )
    ratio: tuple[float, float] = flag(
        "random resized crop: width / height", default=(3 / 4, 4 / 3), metavar=("MIN", "MAX"), above=0
    )
    train_interpolation: str = flag(
        "its filter: bilinear, bicubic or random",
        default="random",
        metavar="F",
        choices=("bilinear", "bicubic", "random"),
    )
    aa: str = flag("RandAugment, e.g. rand-m9-n2-mstd0.5", default="none", metavar="SPEC")
    color_jitter: str = flag("strength 0.4; with a hue: 0.4,0.4,0.4,0.1", default="0", metavar="PCT")
    cutout: int = flag("mask a square of N x N pixels", default=0, metavar="N", at_least=0)
    reprob: float = flag("random erasing of a rectangle", default=0.0, metavar="P", at_least=0, at_most=1)
    remode: str = flag(
        "pixel: noise; rand: one colour; const: mean",
        default="pixel",
        metavar="MODE",
        choices=("pixel", "rand", "const"),
    )
    mixup: float = flag("mixup with λ ~ Beta(ALPHA, ALPHA)", default=0.0, metavar="ALPHA", at_least=0)
    cutmix: float = flag("CutMix with λ ~ Beta(ALPHA, ALPHA)", default=0.0, metavar="ALPHA", at_least=0)
    mixup_prob: float = flag(
        "probability of mixup or CutMix per batch", default=1.0, metavar="P", at_least=0, at_most=1
    )
    mixup_switch_prob: float = flag(
        "probability of CutMix if both are on", default=0.5, metavar="P", at_least=0, at_most=1
    )
    aug_repeats: int = flag("repeated augmentation: N copies per image", default=1, metavar="N", at_least=1)

    device: str = flag(
        "cpu or cuda (pip install 'cupy-cuda13x[ctk]')", default="cpu", metavar="NAME", group="device and output"
    )
    threads: int = flag(
        "CPU threads, one shard of the batch each", default=min(2, os.cpu_count() or 1), metavar="N", at_least=1
    )
    zero: bool = flag("divide the optimizer state between the ranks", default=False)
    graph: bool = flag("run a training step as one CUDA graph", shown="if possible")
    amp: bool = flag("mixed precision: 16-bit activations", default=False)
    amp_dtype: str = flag(
        "bfloat16, or float16 with loss scaling",
        default="bfloat16",
        metavar="TYPE",
        choices=("bfloat16", "float16"),
    )
    tf32: bool = flag("TF32 tensor cores for float32 matmuls on GPU", default=True)
    tune_cpu: bool = flag("tune NumPy for speed: minigrad.tune_cpu", default=True)
    validation_batch_size: int = flag("images per batch in evaluation", default=500, metavar="N", at_least=1)
    output: str = flag("results folder", shown="runs/MODEL-DATASET[-N]", metavar="DIR")
    resume: str = flag("continue the run in DIR; auto: the newest", default="none", metavar="DIR")
    eval: str = flag("only evaluate a checkpoint, or a run's best", default="none", metavar="FILE")
    lr_find: bool = flag("learning-rate range test; trains nothing", default=False, negatable=False)
    tensorboard: bool = flag("TensorBoard files; pip install tensorboardX", default=False)
    checkpoint_format: str = flag("npz or safetensors", default="npz", metavar="F", choices=("npz", "safetensors"))

    @property
    def autocast_dtype(self) -> str | None:
        """The 16-bit dtype of mixed precision; None without --amp."""
        return self.amp_dtype if self.amp else None

    @property
    def random_crop(self) -> bool:
        """Whether the training images are cropped and resized at random: --scale."""
        return self.scale != FLAGS["scale"].default and not self.no_aug

    @property
    def why_no_graph(self) -> str:
        """Why a step cannot be a CUDA graph, and which flag to change; empty if a graph is possible."""
        reasons = {
            "CUDA graphs are for a GPU: --device cuda": self.device == "cpu",
            "a graph is captured in one thread: --threads 1": self.threads > 1,
            "--scale crops images on the host": self.random_crop,
            "the learning rates of SGD and Muon are computed on the host: --opt adamw": self.opt in ("sgd", "muon"),
            "loss scaling of float16 runs on the host: --amp-dtype bfloat16 needs none": self.autocast_dtype
            == "float16",
            "--skip-nonfinite reads back each step, which a graph cannot: --no-skip-nonfinite": self.skip_nonfinite,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def without_effect(self, names: Iterable[str]) -> list[str]:
        """A line for each of the settings `names` that this run does not use."""
        needs = {
            "momentum": ("--opt sgd", self.opt == "sgd"),
            "model_ema_decay": ("--model-ema", self.model_ema),
            "model_ema_warmup": ("--model-ema", self.model_ema),
            "crop_padding_mode": ("--crop-padding", self.crop_padding > 0),
            "ratio": ("--scale", self.random_crop),
            "train_interpolation": ("--scale", self.random_crop),
            "remode": ("--reprob", self.reprob > 0),
            "mixup_prob": ("--mixup or --cutmix", self.mixup > 0 or self.cutmix > 0),
            "mixup_switch_prob": ("both --mixup and --cutmix", self.mixup > 0 and self.cutmix > 0),
            "amp_dtype": ("--amp", self.amp),
        }
        why = {name: f"without {need}" for name, (need, is_met) in needs.items() if not is_met}
        if self.batch_size == 1:  # an image would be mixed with itself
            why |= dict.fromkeys(("mixup", "cutmix", "mixup_prob", "mixup_switch_prob"), "with --batch-size 1")
        if self.no_aug:
            every = list(FLAGS)
            why |= dict.fromkeys(every[every.index("no_aug") + 1 : every.index("device")], "with --no-aug")
        return [f"{option(name)} has no effect {why[name]}" for name in names if name in why]


FLAGS = {f.name: Flag(name=f.name, type=f.type, **f.metadata) for f in fields(Settings)}
"""The flag of each setting, in the order of --help."""


def defaults(dataset: str = FLAGS["dataset"].default) -> dict[str, Any]:
    """The defaults for a dataset, without those that are derived from other settings."""
    return {name: flag.default_for(dataset) for name, flag in FLAGS.items() if not flag.shown}
