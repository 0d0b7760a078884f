"""L7: from settings to the parts of a run. Each part gets the settings that it uses."""

from dataclasses import fields
from functools import partial
from typing import Any

import minigrad.functional as F
import models
from minigrad.backend.random import Generator
from minigrad.nn import Module
from minigrad.optim import EMA, SGD, Adam, AdamW, Muon, Optimizer, matrices_apart
from minigrad.parallel.processes import World
from minigrad.parallel.sharded import ShardedOptimizer
from minigrad.parallel.threads import Shards
from models.model import ImageModel, param_groups
from models.pretrained import architecture
from models.summary.cost import trace
from train.config.errors import InputError
from train.config.settings import Settings
from train.data import datasets, folder
from train.data.augment import Augment, Transform
from train.data.batches import Sampler
from train.data.dataset import Dataset
from train.evaluate import Evaluation
from train.loop import Trainer
from train.step import Step, StepOptions

_STREAM = 1 << 32  # above every seed: shuffling, augmentation and dropout do not share a stream with initialisation


def create_dataset(settings: Settings) -> Dataset:
    """The dataset, on the CPU."""
    return datasets.load(
        settings.dataset,
        settings.data_dir,
        download=settings.download,
        options=_folder_options(settings),
        train=settings.train_num_samples,
        test=settings.val_num_samples,
    )


def create_test_dataset(settings: Settings) -> Dataset:
    """The dataset for an evaluation, on the CPU: without its training images, if they need not be read."""
    return datasets.load_test(
        settings.dataset,
        settings.data_dir,
        download=settings.download,
        options=_folder_options(settings),
        test=settings.val_num_samples,
    )


def _folder_options(settings: Settings) -> folder.Options:
    return folder.Options(**{f.name: getattr(settings, f.name) for f in fields(folder.Options)})


def model_arguments(settings: Settings, dataset: Dataset) -> dict[str, Any]:
    """The arguments of `models.create_model`; a name with timm's tag, or of torchvision, stands for its model.

    Raises:
        ValueError: there is no model of this name.
    """
    channels, height, _ = dataset.train.shape
    return {
        "name": architecture(settings.model),
        "num_classes": len(dataset.classes),
        "img_size": height,
        "in_chans": channels,
        "drop_path_rate": settings.drop_path,
    }


def create_model(settings: Settings, dataset: Dataset) -> ImageModel:
    """The model, initialised, on the CPU.

    Raises:
        InputError: there is no model of this name, or the model does not accept the size of the images.
    """
    try:
        model = models.create_model(**model_arguments(settings, dataset))
        trace(model, (1, *dataset.train.shape))
    except (ValueError, TypeError) as error:
        raise InputError(f"--model {settings.model}: {error}") from None
    return model


def create_trainer(settings: Settings, model: Module, dataset: Dataset, world: World | None = None) -> Trainer:
    """The trainer of a model, with all its parts, on the device of the settings. Without `world`, a process alone."""
    augment = create_augment(settings, dataset)
    model, dataset = model.to(settings.device), dataset.to(settings.device)
    generator = Generator(_STREAM * (settings.seed + 1))
    shards, world = Shards(settings.threads, generator.seed + 1), world or World()
    check_batch_size(settings, augment.mixes, world.size)
    optimizer = create_optimizer(settings, model)
    smoothing = 0.0 if augment.mixes else settings.smoothing  # mixed targets are smoothed already
    step = Step(
        model=model,
        data=dataset.train,
        transform=Transform(augment, dataset.normalizer(), len(dataset.classes), generator),
        criterion=partial(F.cross_entropy, label_smoothing=smoothing),
        optimizer=ShardedOptimizer(optimizer, world) if settings.zero else optimizer,
        ema=EMA(model, settings.model_ema_decay, warmup=settings.model_ema_warmup) if settings.model_ema else None,
        shards=shards,
        world=world,
        options=StepOptions(
            batch_size=settings.batch_size,
            grad_accum_steps=settings.grad_accum_steps,
            clip_grad=settings.clip_grad,
            amp_dtype=settings.autocast_dtype,
            skip_nonfinite=settings.skip_nonfinite,
            graph=settings.graph,
        ),
    )
    return Trainer(
        dataset,
        step,
        Evaluation(settings.validation_batch_size, settings.autocast_dtype, shards, world),
        Sampler(len(dataset.train), settings.device, generator, 1 if settings.no_aug else settings.aug_repeats),
        epochs=settings.epochs,
        warmup_epochs=settings.warmup_epochs,
        lr=settings.lr,
    )


def check_batch_size(settings: Settings, mixes: bool, ranks: int) -> None:
    """Check that every rank has an image of each batch; with mixup, two images.

    Raises:
        InputError: --batch-size is too small for the number of ranks.
    """
    least = 2 * ranks if mixes and ranks > 1 else ranks
    if settings.batch_size < least:
        pairs = ", two each with mixup or CutMix" if mixes else ""
        raise InputError(
            f"--batch-size {settings.batch_size} is divided between {ranks} ranks{pairs}: use at least {least}, or "
            "fewer ranks"
        )


def create_augment(settings: Settings, dataset: Dataset) -> Augment:
    """The augmentation, tested on one image: errors appear before training starts.

    Raises:
        InputError: a setting is out of its range or does not fit the images.
    """
    options = {f.name: getattr(settings, f.name) for f in fields(Augment) if f.name != "mean"}
    options["aa"] = None if settings.aa == "none" else settings.aa
    if settings.no_aug:
        options = {"hflip": 0.0, "crop_padding": 0, "smoothing": settings.smoothing}
    side = min(dataset.train.shape[1:])
    if options["crop_padding"] > side:
        raise InputError(f"--crop-padding {settings.crop_padding} is larger than the images, {side} pixels")
    try:
        augment = Augment(**options, mean=dataset.mean)
        augment.pixels(dataset.train.first(1).to("cpu").images, Generator())
    except ValueError as error:
        raise InputError(f"augmentation: {error}") from None
    return augment


def create_optimizer(settings: Settings, model: Module) -> Optimizer:
    """The optimizer --opt. Biases, norms and embeddings have no weight decay.

    Muon is for the matrices and filters of hidden layers; stem, head and parameters without weight decay get AdamW.
    """
    groups = param_groups(model, settings.lr, settings.weight_decay, settings.layer_decay)
    match settings.opt:
        case "adamw":
            return AdamW(groups)
        case "adam":
            return Adam(groups)
        case "sgd":
            return SGD(groups, momentum=settings.momentum, nesterov=settings.momentum > 0)
    outside = [p for group in groups if not group["weight_decay"] for p in group["params"]]
    if isinstance(model, ImageModel):
        depths, ends = model.layer_ids(), (0, len(model.sections()))  # stem, and what follows the blocks
        outside += [p for name, p in model.named_parameters() if depths[name] in ends]
    return Muon(matrices_apart(groups, outside))
