"""Small models and runs for the tests."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from minigrad import functional, manual_seed, nn
from train.__main__ import parse
from train.create import create_trainer, model_arguments
from train.loop import Stopped
from train.output import resume
from train.output.info import RunInfo

FLAGS = ["--train-num-samples", "60", "--val-num-samples", "20", "--batch-size", "20", "--threads", "1"]
"""Flags of a run of three steps an epoch."""

EVERYTHING = {
    "hflip": 0.5, "crop_padding": 4, "aa": "rand-m9-mstd0.5", "color_jitter": "0.4,0.4,0.4,0.1", "cutout": 4,
    "reprob": 0.5, "mixup": 0.8, "cutmix": 1.0, "aug_repeats": 2, "smoothing": 0.1,
}  # fmt: skip
"""Settings with every augmentation on."""


class Small(nn.Module):
    """A model with convolution, norm, dropout, linear head and a parameter without weight decay."""

    def __init__(self):
        self.pos_embed = nn.Parameter(np.zeros((1, 3, 32, 32), np.float32))
        self.conv = nn.Conv2d(3, 4, 8, stride=8)
        self.norm = nn.LayerNorm(64)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(64, 10)

    def no_weight_decay(self):
        return {"pos_embed"}

    def forward(self, x):
        return self.head(self.drop(self.norm(functional.relu(self.conv(x + self.pos_embed)).flatten(1))))


def fit(dataset, **overrides):
    settings = replace(parse(["--epochs", "2", "--batch-size", "16"]), **overrides)
    manual_seed(settings.seed)
    model = Small()
    return list(create_trainer(settings, model, dataset).fit()), model


# Resumed runs ---------------------------------------------------------------------------------------------------------

TIMES = {"seconds", "images_per_second"}
"""Columns of the metrics that differ between equal runs."""


def trainer_of(dataset, settings, model=Small):
    manual_seed(settings.seed)
    return create_trainer(settings, model(), dataset)


def info_of(dataset, settings):
    return RunInfo(asdict(settings), model_arguments(settings, dataset), dataset)


def finish(trainer, history=()):
    """Train to the end; returns the rows without times, with the final loss scale, and the weights."""
    history = [*history, *trainer.fit()]
    rows = [{k: v for k, v in asdict(row).items() if k not in TIMES} for row in history]
    return [*rows, trainer.step.scaler.state_dict()], trainer.model.state_dict()


def interrupted(trainer, steps, path, info, history=()):
    """Train until `steps` steps of the run are done, and save the state."""
    step, history = trainer.advance, list(history)

    def counted(index):
        step(index)
        if trainer.schedule.t == steps:
            trainer.stop.set()

    trainer.advance = counted
    with pytest.raises(Stopped):
        for metrics in trainer.fit():
            history.append(metrics)
    resume.save(path, trainer, info, history)
