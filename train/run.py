"""L7: a run from its settings to its results."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import models
from minigrad import cublas, manual_seed, tune_cpu
from minigrad.backend import to_device
from minigrad.dtypes import as_dtype
from models.summary import trace
from train import checkpoint, datasets, initial, naming, report, resume, signals
from train.errors import InputError
from train.loop import DivergedError, Stopped, Trainer
from train.results import Results, alone
from train.settings import Settings


def run(settings: Settings) -> int:
    """Train, or test a checkpoint. Returns the exit code: 0, or as a shell has it for the signal that stopped it.

    Raises:
        InputError: a setting cannot be, a file is missing or damaged, the folder cannot be written to, or the numbers
            are no longer finite.
    """
    check(settings)
    cublas.allow_tf32(settings.tf32)
    if settings.eval != "none":
        report.run(settings)
        return 0
    folder, goes_on = Path(settings.output), settings.resume != "none"
    state = Path(settings.resume) if goes_on else folder / naming.STATE
    if is_finished(settings):
        return 0
    trainer, begun = prepare(
        replace(settings, resume="none"), goes_on
    )  # what a run writes is the same however it came about
    results = Results(state, trainer)
    with alone(folder):
        if is_finished(settings):  # by now: another process had the folder while the data were loaded
            return 0
        if goes_on:
            results.go_on()
        else:
            results.begin()
        introduce(trainer, folder, begun)
        if goes_on:
            print(f"resume   after epoch {trainer.epoch} and {trainer.position} steps of the next", flush=True)
        if code := fit(trainer, results):
            return code
        results.finish()
    best = results.best()
    print(f"best     {best.test_acc:.2%} of the test images, in epoch {best.epoch}; see {folder}")
    return 0


def check(settings: Settings) -> None:
    """Refuse, before any work, what would fail only after it."""
    try:
        to_device(np.zeros(1), settings.device)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--device {settings.device}: {error}") from None
    if settings.graph and settings.why_no_graph:
        raise InputError(f"--graph cannot be: {settings.why_no_graph}")
    if settings.amp:
        try:
            as_dtype(settings.amp_dtype)
        except RuntimeError as error:
            raise InputError(f"--amp: {error}") from None
    if settings.checkpoint_format == "safetensors":
        try:
            import safetensors.numpy  # noqa: F401
        except ImportError:
            fix = "needs its library: pip install safetensors"
            raise InputError(f"--checkpoint-format safetensors {fix}") from None


def is_finished(settings: Settings) -> bool:
    """Whether the run that is to go on has come to its end: then it says so.

    Raises:
        InputError: it is a new run, and its folder is another's.
    """
    if settings.resume == "none":
        if naming.is_taken(settings.output):
            raise InputError(
                f"--output {settings.output} holds the results of an earlier run; name another folder, or --resume "
                "auto if it is to go on"
            )
        return False
    finished = resume.is_finished(Path(settings.resume))
    if finished:
        print(f"finished {settings.output} holds all {settings.epochs} epochs: there is nothing to go on with")
    return finished


def prepare(settings: Settings, goes_on: bool) -> tuple[Trainer, str]:
    """A new trainer, with the data and a model; and a line on the weights that this begins with, empty if there is no
    more to say than that they were drawn. A run that goes on has its weights from its state."""
    dataset = datasets.load(settings)
    manual_seed(settings.seed)
    try:
        model = models.create_model(**checkpoint.model_arguments(dataset, settings))
        trace(model, (1, *dataset.train.images.shape[1:]))  # whether it takes images of their size
    except (ValueError, TypeError) as error:
        raise InputError(f"--model {settings.model}: {error}") from None
    begins = settings.initial_checkpoint != "none" and not goes_on
    begun = initial.load(model, dataset.classes, settings) if begins else ""
    trainer = Trainer(model.to(settings.device), dataset, settings)
    if settings.tune_cpu:
        tune_cpu(trainer.threads)
    return trainer, begun


def introduce(trainer: Trainer, folder: Path, begun: str) -> None:
    """Print what is about to happen."""
    settings, dataset = trainer.settings, trainer.dataset
    print(
        f"model    {settings.model}, {sum(p.data.size for p in trainer.step.parameters):,} parameters\n"
        f"data     {dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} test images, "
        f"{len(dataset.classes)} classes\n"
        f"train    {settings.epochs} epochs of {trainer.steps} steps, batch {settings.batch_size}, "
        f"lr {settings.lr:g}, seed {settings.seed}, on {settings.device}"
    )
    if begun:
        print(begun)
    if settings.model_ema:
        print(f"average  of the weights, decay {settings.model_ema_decay:g}: what is tested and kept")
    if settings.device != "cpu" and settings.why_no_graph:
        print(f"graph    none: {settings.why_no_graph}")
    print(f"output   {folder}", flush=True)


def fit(trainer: Trainer, results: Results) -> int:
    """Train to the end, a line for each epoch, or until a signal comes; returns the exit code."""
    settings = trainer.settings
    tested = "average's test" if settings.model_ema else "test"
    with signals.as_wish(trainer.stop) as received:
        try:
            for metrics in trainer.fit():
                results.add(metrics)
                print(metrics.line(settings.epochs, tested), flush=True)
        except Stopped:
            results.keep()
            place = f"epoch {trainer.epoch} and {trainer.position} of {trainer.steps} steps of the next"
            print(f"stopped after {place}; --resume {results.folder} goes on from there", file=sys.stderr)
            return 128 + received[0]
        except DivergedError as error:
            if trainer.step.watched:
                raise
            print("looking for the first op: the epoch once more, with a look at each step", file=sys.stderr)
            try:
                found = resume.look_again(results.state, trainer)
            except Stopped:
                return 128 + received[0]
            raise InputError(found or f"{error} (once more, with a look at each step, it did not)") from None
    return 0
