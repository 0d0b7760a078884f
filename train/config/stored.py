"""L7: the settings stored in the files of a run, from which --resume and --eval start."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from minigrad import serialize
from models.predict import one_line
from models.weights import checkpoint
from train.config import file as config
from train.config.errors import InputError
from train.config.flags import option, show
from train.config.settings import FLAGS, Settings, defaults
from train.data import datasets, folder
from train.output import naming, resume

_CHANGEABLE = {
    *("data_dir", "download", "output", "resume", "threads", "validation_batch_size", "zero"),
    *("patience", "tensorboard", "cache"),
}
"""Settings that may change on resume. They affect the results of an epoch only by rounding."""

_ADDED: dict[str, Any] = {"pretrained": False, "zero": False}
_ADDED |= {"momentum": 0.9, "patience": 0, "color_jitter": "0", "lr_find": False, "tensorboard": False}
_ADDED |= {"val_split": 0.0, "skip_bad_images": False, "fast_jpeg": False, "cache": True}
_ADDED |= {name: FLAGS[name].default for name in ("scale", "ratio", "train_interpolation")}
"""Settings that states of earlier versions of this program do not have, with the value that continues such a run."""

_OF_EVALUATION = {
    *("eval", "dataset", "data_dir", "download", "val_num_samples", "validation_batch_size"),
    *("val_split", "skip_bad_images", "fast_jpeg", "cache"),
    *("device", "threads", "amp", "amp_dtype", "tf32", "tune_cpu"),
}
"""Settings that may be given with --eval."""


def find_state(asked: str, output: str | None, newest: Path) -> Path | None:
    """The state file that --resume selects; None for a new run.

    Args:
        asked: the value of --resume, not "none".
        output: the value of --output, if given.
        newest: the folder for `--resume auto` without --output.

    Raises:
        InputError: there is no such file, or it is in another folder than `output`.
    """
    if asked == "auto":
        folder = newest if output is None else Path(output)
        if (folder / naming.STATE).exists():
            return folder / naming.STATE
        if (folder / naming.TABLE).exists():
            raise InputError(f"--resume auto: {folder} holds the results of a run, but not its state, {naming.STATE}")
        return None
    path = Path(asked) / naming.STATE if Path(asked).is_dir() else Path(asked)
    if not path.exists():
        raise InputError(f"--resume {asked}: there is no file {path}")
    if output is not None and Path(output).resolve() != path.parent.resolve():
        raise InputError(f"--resume {asked}: a run continues in the folder of its state; omit --output")
    return path


def of_state(path: Path, given: dict[str, Any]) -> Settings:
    """The settings stored in a state file. `given` must agree with them, except for the settings in _CHANGEABLE.

    Raises:
        InputError: a given setting differs, or the file is no state of this version of the program.
    """
    stored = asdict(config.complete(path, {**_ADDED, **resume.read_metadata(path)["settings"]}))
    for name, value in given.items():
        if name not in _CHANGEABLE and value != stored[name]:
            raise InputError(
                f"{path} is of a run with {option(name)} {show(stored[name])}, not {show(value)}: omit the flag to "
                "continue the run, or name another --output"
            )
    changed = {name: value for name, value in given.items() if name in _CHANGEABLE}
    changed |= {"output": str(path.parent), "resume": str(path)}
    config.check_texts(changed)
    return Settings(**{**stored, **changed})


def of_checkpoint(path: Path, given: dict[str, Any], flags: dict[str, Any]) -> Settings:
    """The settings stored in a checkpoint, or in the best of a run's folder, overridden by `given`; `flags` is the
    subset given as flags.

    Raises:
        InputError: a flag has no effect on an evaluation, or is not for the dataset, or the file is no checkpoint of
            this program.
    """
    if refused := sorted(set(flags) - _OF_EVALUATION):
        flag = option(refused[0])
        raise InputError(f"{flag} has no effect with --eval, which evaluates the stored model: omit the flag")
    try:
        path = checkpoint.find(path)
        metadata = serialize.load_metadata(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"--eval {path}: {one_line(error)}") from None
    if isinstance(metadata, dict) and "resume" in metadata:
        raise InputError(
            f"--eval {path} is the state of a run; its models are the files best and last in the same folder"
        )
    if not isinstance(metadata, dict) or not isinstance(metadata.get("settings"), dict):
        raise InputError(f"--eval {path} is no checkpoint of this program, such as best.npz in a run's folder")
    stored = {name: value for name, value in metadata["settings"].items() if name in FLAGS}
    # Settings that an earlier version of this program did not have get their defaults.
    earlier = {**defaults(str(stored.get("dataset"))), "output": ""}
    overrides = {name: value for name, value in given.items() if name in _OF_EVALUATION}
    fixed = {"graph": False, "eval": str(path), "resume": "none"}
    settings = config.complete(path, {**earlier, **stored, **overrides, **fixed})
    if settings.dataset != "folder":
        asked = {f.name: given[f.name] for f in fields(folder.Options) if f.name in overrides}
        datasets.check_not_folder(settings.dataset, folder.Options(**asked))
    return settings if "val_split" in given else _without_split(settings, stored.get("data_dir"))


def _without_split(settings: Settings, trained_on: Any) -> Settings:
    """The settings of an evaluation without --val-split: a folder that is divided already is not divided again.

    Raises:
        InputError: the folder is another than that of the training, and which of its images to test on is unknown.
    """
    data = Path(settings.data_dir).expanduser()
    if settings.dataset != "folder" or not settings.val_split:
        return settings
    if folder.is_divided(data):
        return replace(settings, val_split=0.0)
    if data.resolve() != Path(str(trained_on)).expanduser().resolve():
        raise InputError(
            f"--data-dir {data} is another folder than in training, which had --val-split {settings.val_split:g}: add "
            f"--val-split 0 to evaluate on all images, or --val-split {settings.val_split:g} if these are the same "
            "images, moved"
        )
    return settings
