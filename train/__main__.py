"""L7: the command line: `python -m train --help`."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain, count, takewhile
from pathlib import Path

from train import config
from train.errors import InputError
from train.flags import parser
from train.recipes import recipe
from train.settings import BY_DATASET, COMMON, Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for a mistake in the input, 130 after Ctrl-C."""
    try:
        settings = parse(arguments)
        try:
            return run(settings)
        except KeyboardInterrupt:
            print("\ninterrupted at once; what was saved before is kept", file=sys.stderr)
            return 130
    except InputError as error:
        print(f"python -m train: {error}", file=sys.stderr)
        return 2


def run(settings: Settings) -> int:
    """Train, and leave everything in the output folder. NumPy and the models load here, not before `--help`."""
    import models
    from minigrad import cublas, manual_seed, tune_cpu
    from train import checkpoint, datasets, evaluate, loop, plots, resume, signals
    from train.log import Metrics, write_table

    check(settings)
    if settings.eval != "none":
        evaluate.run(settings)
        return 0
    folder, goes_on = Path(settings.output), settings.resume != "none"
    state = Path(settings.resume) if goes_on else folder / resume.NAME
    settings = replace(settings, resume="none")  # what a run writes is the same however it came about
    if goes_on and resume.is_finished(state):
        print(f"finished {folder} holds all {settings.epochs} epochs: there is nothing to go on with")
        return 0
    dataset = datasets.load(settings)
    manual_seed(settings.seed)
    cublas.allow_tf32(settings.tf32)
    try:
        model = models.create_model(**checkpoint.model_arguments(dataset, settings)).to(settings.device)
    except (ValueError, TypeError) as error:
        raise InputError(f"--model {settings.model}: {error}") from None
    trainer = loop.Trainer(model, dataset, settings)
    history: list[Metrics] = resume.load(state, trainer) if goes_on else []
    if settings.tune_cpu:
        tune_cpu(trainer.threads)

    def keep() -> None:
        """After an epoch, or before the first: the state of the run, and then all that follows from it."""
        resume.save(state, trainer, history)
        publish()

    def publish() -> None:
        if history and not trainer.position:
            better = all(history[-1].test_acc > earlier.test_acc for earlier in history[:-1])
            with trainer.tested():
                for name in ("last", "best") if better else ("last",):
                    file = folder / f"{name}.{settings.checkpoint_format}"
                    checkpoint.save(file, model, dataset, settings, history[-1])
        for name in ("metrics.csv", "metrics.jsonl"):
            write_table(folder / name, history)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if goes_on:
            for left in folder.glob("*.[0-9]*.part"):  # by a process that was killed while it wrote
                left.unlink()
            publish()
        else:
            config.write(folder / "args.toml", asdict(settings))
            keep()
        print(
            f"model    {settings.model}, {sum(p.data.size for p in trainer.parameters):,} parameters\n"
            f"data     {dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} test images, "
            f"{len(dataset.classes)} classes\n"
            f"train    {settings.epochs} epochs of {trainer.steps} steps, batch {settings.batch_size}, "
            f"lr {settings.lr:g}, seed {settings.seed}, on {settings.device}"
        )
        if settings.model_ema:
            print(f"average  of the weights, decay {settings.model_ema_decay:g}: what is tested and kept")
        if settings.graph and not trainer.graph:
            what = "move matrices by Muon" if settings.opt == "muon" else "scale the loss for --amp-dtype float16"
            print(f"graph    off: it cannot {what}{'' if settings.opt == 'muon' else '; bfloat16 needs no scale'}")
        print(f"output   {folder}", flush=True)
        if goes_on:
            print(f"resume   after epoch {trainer.epoch} and {trainer.position} steps of the next", flush=True)
        with signals.as_wish(trainer.stop) as received:
            try:
                for metrics in trainer.fit():
                    history.append(metrics)
                    keep()
                    print(metrics.line(settings.epochs, "average's test" if settings.model_ema else "test"), flush=True)
            except loop.Stopped:
                resume.save(state, trainer, history)
                place = f"epoch {trainer.epoch} and {trainer.position} of {trainer.steps} steps of the next"
                print(f"stopped after {place}; --resume {folder} goes on from there", file=sys.stderr)
                return 128 + received[0]
            except loop.DivergedError as error:
                if trainer.watched:
                    raise
                print("looking for the first op: the epoch once more, with a look at each step", file=sys.stderr)
                found = resume.first_op(state, trainer) or f"{error} (once more, with a look at each step, it did not)"
                raise InputError(found) from None
        if plots.curves(history, f"{settings.model} on {dataset.name}", folder / "curves.png"):
            best_file = folder / f"best.{settings.checkpoint_format}"
            plots.mistakes(evaluate.answers(best_file, trainer.dataset, settings), trainer.dataset.test.images, folder)
        resume.finish(state, settings, history)
    except OSError as error:
        raise InputError(f"cannot write to --output {folder}: {error.strerror}") from None
    best = max(history, key=lambda metrics: metrics.test_acc)
    print(f"best     {best.test_acc:.2%} of the test images, in epoch {best.epoch}; see {folder}")
    return 0


def check(settings: Settings) -> None:
    """Refuse, before any work, what would fail only after it."""
    import numpy as np

    from minigrad.backend import to_device
    from minigrad.dtypes import as_dtype

    try:
        to_device(np.zeros(1), settings.device)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--device {settings.device}: {error}") from None
    if settings.graph and settings.device == "cpu":
        raise InputError("--graph needs --device cuda: CUDA graphs are for a GPU")
    if settings.graph and settings.skip_nonfinite:
        raise InputError("--skip-nonfinite looks at the numbers of each step, and nobody sees into a graph: --no-graph")
    if settings.amp:
        try:
            as_dtype(settings.amp_dtype)
        except RuntimeError as error:
            raise InputError(f"--amp: {error}") from None
    if settings.checkpoint_format == "safetensors":
        try:
            import safetensors.numpy  # noqa: F401
        except ImportError:
            fix = "needs its library: pip install 'minigrad[train]'"
            raise InputError(f"--checkpoint-format safetensors {fix}") from None
    if settings.resume == settings.eval == "none" and _is_taken(settings.output):
        raise InputError(
            f"--output {settings.output} holds the results of an earlier run; name another folder, or --resume auto "
            "if it is to go on"
        )


def parse(arguments: Sequence[str] | None) -> Settings:
    """The settings of a run, from the last word to the first: flags, settings file, recipe, dataset, all runs.

    A recipe named by a flag goes before the file, as the flag does. A run that goes on has the settings it had.
    """
    flags = parser()
    said = {name: value for name, value in vars(flags.parse_args(arguments)).items() if value is not None}
    file = config.read(Path(said.pop("config")), flags) if "config" in said else {}
    given = {**file, **said}
    dataset, model, name = ({**COMMON, **given}[key] for key in ("dataset", "model", "recipe"))
    if given.get("eval", "none") != "none":
        from train import evaluate

        return evaluate.settings(Path(given["eval"]), given)
    runs = f"runs/{model}-{dataset}"
    if given.get("resume", "none") != "none":
        from train import resume  # which needs NumPy, and `--help` none

        state = resume.find(given, _newest_folder(runs))
        if state is not None:
            return resume.settings(state, given)
    chosen = recipe(name, model)
    layers = (file, chosen, said) if "recipe" in said else (chosen, file, said)
    settings = {**COMMON, **BY_DATASET[dataset]}
    for layer in layers:
        settings |= layer
    settings["resume"] = "none"
    for setting, value in settings.items():
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise InputError(f"--{setting.replace('_', '-')}: {value!a} is no UTF-8, as the files of a run are")
    epochs, warmup = settings["epochs"], settings["warmup_epochs"]
    if warmup > epochs:
        if "warmup_epochs" in given:
            raise InputError(f"--warmup-epochs {warmup:g} is more than --epochs {epochs}")
        settings["warmup_epochs"] = epochs / 10
    if settings["device"] != "cpu" and "threads" not in given:
        settings["threads"] = 1
    scaled = settings["amp"] and settings["amp_dtype"] == "float16"
    unseen = settings["threads"] == 1 and not scaled and not settings["skip_nonfinite"] and settings["opt"] == "adamw"
    settings.setdefault("graph", settings["device"] != "cpu" and unseen)
    settings.setdefault("output", _unused_folder(runs))
    return Settings(**settings)


def _unused_folder(name: str) -> str:
    """`name`, or `name-2`, `name-3` ...: the first that holds no results."""
    return next(folder for folder in _numbered(name) if not _is_taken(folder))


def _newest_folder(name: str) -> Path:
    """The last before that, or `name`."""
    taken = list(takewhile(_is_taken, _numbered(name)))
    return Path(taken[-1] if taken else name)


def _numbered(name: str) -> Iterator[str]:
    return chain([name], (f"{name}-{number}" for number in count(2)))


def _is_taken(folder: str) -> bool:
    return any((Path(folder) / name).exists() for name in ("metrics.csv", "resume.npz"))


if __name__ == "__main__":
    sys.exit(main())
