"""L7: a run, from settings to results."""

import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from signal import SIGTERM

import numpy as np

from minigrad import manual_seed, parallel, tune_cpu
from minigrad.backend import cublas, to_device
from minigrad.backend.dtypes import as_dtype
from minigrad.parallel.processes import World
from minigrad.parallel.threads import Shards
from models.terminal import plural
from train import initial, lr_find, signals
from train.config.errors import InputError
from train.config.settings import Settings
from train.create import create_dataset, create_model, create_test_dataset, create_trainer, model_arguments
from train.data.dataset import Dataset
from train.evaluate import Evaluation
from train.loop import DivergedError, Stopped, Trainer
from train.output import naming, plots, report, resume, tensorboard
from train.output.info import RunInfo
from train.output.log import columns, without_libraries
from train.output.results import Results, locked, writing
from train.ranks import check_equal, check_parameters, only_first_prints


def run(settings: Settings) -> int:
    """Train, or evaluate a checkpoint. Returns the exit code: 0, or 128 + n after signal n.

    Raises:
        InputError: a setting is invalid, a file is missing or damaged, the folder cannot be written to, or a loss or
            gradient became NaN or infinite.
    """
    try:
        world = parallel.world()
        world.barrier()  # raises now if the ranks cannot reach one another
    except (ValueError, RuntimeError) as error:
        raise InputError(str(error)) from None
    with only_first_prints(world):
        check(settings)
        cublas.allow_tf32(settings.tf32)
        if settings.eval != "none":
            evaluate(settings, world)
            return 0
        if settings.lr_find:
            find_lr(settings, world)
            return 0
        return train(settings, world)


def train(settings: Settings, world: World) -> int:
    """Train a new model, or continue a run. Returns the exit code."""
    folder, resumed = Path(settings.output), settings.resume != "none"
    state = Path(settings.resume) if resumed else folder / naming.STATE
    if world.broadcast_object(world.rank == 0 and is_finished(settings)):  # rank 0 reads the files for all ranks
        return 0
    trainer, info, weights = prepare(settings, world)
    results = Results(state, trainer, info, settings.checkpoint_format, tensorboard=settings.tensorboard)
    with trainer.step.shards, locked(folder) if world.rank == 0 else nullcontext():
        # Checked again: another process may have trained here while the data were loaded.
        if world.broadcast_object(world.rank == 0 and is_finished(settings)):
            return 0
        if resumed:
            results.restore()
        else:
            results.begin()
        print_summary(settings, trainer, weights)
        if resumed:
            steps = plural(trainer.position, "step")
            print(f"resume   after epoch {trainer.epoch} and {steps} of the next", flush=True)
        if code := fit(trainer, results, settings.patience):
            return code
        results.finish()
    best = results.best()
    print(f"best     {best.test_acc:.2%} test accuracy, in epoch {best.epoch}; see {folder}")
    return 0


def check(settings: Settings) -> None:
    """Check the device and the optional libraries before the data are loaded."""
    if settings.pretrained and settings.initial_checkpoint != "none":
        raise InputError("--pretrained and --initial-checkpoint are both initial weights: omit one")
    try:
        to_device(np.zeros(1), settings.device)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--device {settings.device}: {error}") from None
    if settings.dataset == "folder" and settings.val_split and settings.eval == "none":
        data = Path(settings.data_dir).expanduser().resolve()
        for place in (settings.output, "runs"):
            if Path(place).resolve().is_relative_to(data):
                raise InputError(
                    f"--data-dir {settings.data_dir} would contain {place}, the results, beside the classes: start the "
                    "program in another folder, and name an --output elsewhere"
                )
    if settings.graph and settings.why_no_graph:
        raise InputError(f"--graph is not possible: {settings.why_no_graph}")
    if settings.autocast_dtype is not None:
        try:
            as_dtype(settings.autocast_dtype)
        except RuntimeError as error:
            raise InputError(f"--amp: {error}") from None
    if settings.tensorboard:
        tensorboard.writer_class()
    if settings.checkpoint_format == "safetensors":
        try:
            import safetensors.numpy  # noqa: F401
        except ImportError:
            fix = "needs its library: pip install safetensors"
            raise InputError(f"--checkpoint-format safetensors {fix}") from None


def is_finished(settings: Settings) -> bool:
    """True, with a message, if the run to resume has completed all its epochs.

    Raises:
        InputError: a new run has a folder that holds the results of another run.
    """
    if settings.resume == "none":
        if naming.is_taken(settings.output):
            raise InputError(
                f"--output {settings.output} holds the results of an earlier run; name another folder, or continue "
                "that run with --resume auto"
            )
        return False
    finished = resume.is_finished(Path(settings.resume))
    if finished:
        done, epochs = resume.completed(Path(settings.resume)), plural(settings.epochs, "epoch")
        completed = f"{done} of {epochs}, ended by --patience" if done < settings.epochs else epochs
        print(f"finished {settings.output} has completed {completed}: nothing to resume")
    return finished


def prepare(settings: Settings, world: World) -> tuple[Trainer, RunInfo, str]:
    """A new trainer, the information to record in files, and a message about pretrained weights (empty without).

    A resumed run loads no pretrained weights: its weights are in its state file.
    """
    dataset = load_dataset(settings, world)
    check_equal(world, settings, dataset)
    manual_seed(settings.seed)
    model, weights = create_model(settings, dataset), ""
    if settings.pretrained and settings.resume == "none":
        weights = initial.load_pretrained(settings.model, model, dataset.classes)
    elif settings.initial_checkpoint != "none" and settings.resume == "none":
        weights = initial.load(settings.initial_checkpoint, model, settings.model, dataset.classes)
    trainer = create_trainer(settings, model, dataset, world)
    if settings.tune_cpu:
        tune_cpu(len(trainer.step.shards.generators) * world.local_size)
    # Without `resume`, a run that was interrupted writes the same files as an uninterrupted run.
    recorded = asdict(replace(settings, resume="none"))
    return trainer, RunInfo(recorded, model_arguments(settings, dataset), dataset), weights


def load_dataset(settings: Settings, world: World) -> Dataset:
    """The dataset, on the CPU. One rank of each machine goes first, if it downloads files or writes cache files that
    the others then read."""
    in_turn = settings.download or (settings.dataset == "folder" and settings.cache)
    if in_turn and world.local_rank:
        world.barrier()
    dataset = create_dataset(settings)
    if in_turn and not world.local_rank:
        world.barrier()
    return dataset


def print_summary(settings: Settings, trainer: Trainer, weights: str) -> None:
    """Print model, data, schedule and output folder before training."""
    dataset = trainer.dataset
    print(
        f"model    {settings.model}, {sum(p.data.size for p in trainer.step.parameters):,} parameters\n"
        f"data     {dataset.name}: {len(dataset.train):,} training and {plural(len(dataset.test), 'test image')}, "
        f"{plural(len(dataset.classes), 'class')}\n"
        f"train    {plural(settings.epochs, 'epoch')} of {plural(trainer.steps, 'step')}, batch {settings.batch_size}, "
        f"lr {settings.lr:g}, seed {settings.seed}, on {settings.device}"
    )
    if dataset.bad_images:
        bad = plural(len(dataset.bad_images), "image file")
        print(f"skipped  {bad} that cannot be read, listed in {Path(settings.output) / naming.BAD_IMAGES}")
    if trainer.world.size > 1:
        print(f"ranks    {trainer.world.size}, each with a part of every batch")
    if weights:
        print(weights)
    if settings.model_ema:
        print(f"ema      decay {settings.model_ema_decay:g}: the averaged weights are evaluated and saved")
    if settings.device != "cpu" and settings.why_no_graph:
        print(f"graph    none: {settings.why_no_graph}")
    if lacking := without_libraries():
        print(lacking)
    print(f"output   {Path(settings.output)}", flush=True)


def fit(trainer: Trainer, results: Results, patience: int = 0) -> int:
    """Train until the last epoch, a signal, or `patience` epochs without a better test accuracy (0: no such limit).

    Prints one line an epoch; returns the exit code.
    """
    tested = "test" if trainer.step.ema is None else "EMA test"
    with signals.stop_on_signal(trainer.stop, announces=trainer.world.rank == 0) as received:
        try:
            epochs = trainer.fit()
            while not 0 < patience <= results.epochs_since_best() and (metrics := next(epochs, None)) is not None:
                check_parameters(trainer.world, trainer.model, metrics.epoch)
                results.add(metrics)
                print(metrics.line(trainer.epochs, tested, columns()), flush=True)
            if trainer.epoch < trainer.epochs:
                without = f"{plural(results.epochs_since_best(), 'epoch')} without a better test accuracy"
                print(f"stopped  after epoch {trainer.epoch}/{trainer.epochs}, {without} (--patience {patience})")
        except Stopped:
            results.save()
            place = f"epoch {trainer.epoch} and {trainer.position} of {plural(trainer.steps, 'step')} of the next"
            print(f"stopped after {place}; --resume {results.folder} continues from there", file=sys.stderr)
            return stopped_by(received)
        except DivergedError as error:
            if trainer.step.checks_finite:
                raise
            print(
                "repeating the epoch with a check at each step, to find the first op with NaN or Inf", file=sys.stderr
            )
            try:
                found = resume.repeat_with_checks(results.state, trainer, results.info)
            except Stopped:
                return stopped_by(received)
            raise InputError(found or f"{error} (it did not when the epoch was repeated with checks)") from None
    return 0


def find_lr(settings: Settings, world: World) -> None:
    """Run the learning-rate range test, write its table and picture, and print the suggestions. Saves no weights."""
    trainer, _, weights = prepare(settings, world)
    folder, title = Path(settings.output), f"{settings.model} on {trainer.dataset.name}, {settings.opt}"
    with trainer.step.shards, locked(folder) if world.rank == 0 else nullcontext():
        print(f"lr-find  {title}, batch {settings.batch_size}, on {settings.device}", flush=True)
        if weights:
            print(weights)
        test, drawn = lr_find.range_test(trainer), True
        if world.rank == 0:
            with writing(folder):
                lr_find.write_table(test, folder / "lr_find.csv")
                drawn = plots.learning_rates(test, title, folder / "lr_find.png")
        world.barrier()  # no rank ends while another writes: a launcher may then end all ranks
    print(f"lr       {test.steepest:.2g} (steepest decrease of the loss) or {test.tenth:.2g} (minimum / 10)")
    if not drawn:
        print("without  lr_find.png: pip install matplotlib")
    print(f"output   {folder}/lr_find.csv{' and lr_find.png' if drawn else ''}", flush=True)


def stopped_by(received: list[int]) -> int:
    """The exit code of a run that a signal stopped, on this rank or on another."""
    return 128 + (received[0] if received else SIGTERM)


def evaluate(settings: Settings, world: World) -> None:
    """Evaluate the checkpoint of --eval on the test images, and print the report.

    Raises:
        InputError: there are several ranks.
    """
    if world.size > 1:
        raise InputError(f"--eval runs in one process, not in {world.size}: start it without mpiexec")
    if settings.tune_cpu:
        tune_cpu(settings.threads)
    dataset, path = create_test_dataset(settings).to(settings.device), Path(settings.eval)
    with Shards(settings.threads) as shards:
        evaluation = Evaluation(settings.validation_batch_size, settings.autocast_dtype, shards, world)
        predictions = report.predictions(path, dataset, evaluation)
    for reason in dataset.bad_images:
        print(f"skipped  {reason}", file=sys.stderr)
    print(f"model    {settings.model}, {path}")
    images, classes = plural(len(dataset.test), "test image"), plural(len(dataset.classes), "class")
    print(f"data     {dataset.name}: {images}, {classes}")
    print(f"test     {report.text(predictions)}", flush=True)
