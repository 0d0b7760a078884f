"""L7: the command line: `python -m train --help`."""

import io
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from train import config, naming
from train.errors import InputError
from train.flags import parser
from train.recipes import recipe
from train.settings import BY_DATASET, COMMON, Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for a mistake in the input, 128 + its number after a signal."""
    for stream in (sys.stdout, sys.stderr):  # as models.table.escape_unencodable, which would load NumPy
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        settings = parse(arguments)
        from train.run import run  # NumPy and the models load here, not before `--help`

        return run(settings)
    except KeyboardInterrupt:
        print("\ninterrupted at once; what was saved before is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the lines, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, which Windows has no name for
    except InputError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except MemoryError as error:  # NumPy's, or CuPy's for a card; what was saved is whole
        said = " ".join(str(error).split())
        message = (
            f"out of memory{f' ({said})' if said else ''}; a lower --batch-size, with more --grad-accum-steps for the "
            "same step, takes less, and so does a lower --validation-batch-size"
        )
    print(f"python -m train: {message}", file=sys.stderr)
    return 2


def parse(arguments: Sequence[str] | None) -> Settings:
    """The settings of a run. One that goes on has those it had; a checkpoint is tested with those of its run."""
    flags = parser()
    said = {name: value for name, value in vars(flags.parse_args(arguments)).items() if value is not None}
    file = config.read(Path(said.pop("config")), flags) if "config" in said else {}
    given = in_force(file, said)
    if given.get("eval", "none") != "none":
        from train import report  # which needs NumPy, and `--help` none

        return report.settings_of(Path(given["eval"]), given, said)
    if given.get("resume", "none") != "none":
        from train import resume  # likewise

        if (state := resume.find(given, naming.newest(_folder(given)))) is not None:
            return resume.settings_of(state, given)
    return new_run(given)


def in_force(file: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """What the settings file and then the flags say, but for lines of the file that do not hold beside the flags.

    A recipe named by a flag goes before the file, as the flag does; and how a step is computed suits one device.
    """
    model = {**COMMON, **file, **said}["model"]
    over = set(recipe(said["recipe"], model)) if "recipe" in said else set()
    device = file.get("device", COMMON["device"])
    if said.get("device", device) != device:
        over |= {"threads", "graph"}
    return {**{name: value for name, value in file.items() if name not in over}, **said}


def new_run(given: dict[str, Any]) -> Settings:
    """From the last word to the first: what was given, recipe, dataset, all runs; and what follows from these."""
    dataset, model, name = ({**COMMON, **given}[key] for key in ("dataset", "model", "recipe"))
    values = {**COMMON, **BY_DATASET[dataset], **recipe(name, model), **given}
    config.check_texts(values)
    epochs, warmup = values["epochs"], values["warmup_epochs"]
    if warmup > epochs:
        if "warmup_epochs" in given:
            raise InputError(f"--warmup-epochs {warmup:g} is more than --epochs {epochs}")
        values["warmup_epochs"] = epochs / 10
    if values["device"] != "cpu" and "threads" not in given:
        values["threads"] = 1
    output = values.get("output") or naming.unused(_folder(given))
    settings = Settings(**{"graph": False, **values, "output": output, "resume": "none"})
    return settings if "graph" in given else replace(settings, graph=not settings.why_no_graph)


def _folder(given: dict[str, Any]) -> str:
    """Where the results go without --output, or beside."""
    names = {**COMMON, **given}
    return f"runs/{names['model']}-{names['dataset']}"


if __name__ == "__main__":
    sys.exit(main())
