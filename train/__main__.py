"""L7: the command line: `python -m train --help`."""

import io
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from train.config import file as config
from train.config.errors import InputError
from train.config.parser import parser
from train.config.recipes import BY_OPTIMIZER, recipe
from train.config.settings import FLAGS, Settings, defaults
from train.output import naming
from train.supervisor import end_all_ranks, ranks, supervised


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, 2 for an input error, 128 + n after signal n."""
    for stream in (sys.stdout, sys.stderr):  # as models.terminal.escape_unencodable, whose import loads NumPy
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        settings = parse(arguments)
        from train.run import run  # NumPy and the models are imported here: `--help` needs neither

        return run(settings)
    except KeyboardInterrupt:
        return end_all_ranks("interrupted; the results saved so far are kept", 130)
    except BrokenPipeError:  # the reader of stdout, e.g. `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, which Windows lacks
    except InputError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except MemoryError as error:  # from NumPy, or from CuPy on a GPU; the saved state stays complete
        reason = " ".join(str(error).split())
        message = (
            f"out of memory{f' ({reason})' if reason else ''}; lower --batch-size, and raise --grad-accum-steps for an "
            "equal step, or lower --validation-batch-size"
        )
    return end_all_ranks(f"python -m train: {message}", 2)


def parse(arguments: Sequence[str] | None) -> Settings:
    """The settings of a run. --resume and --eval start from the settings stored in the run's files."""
    flags = vars(parser().parse_args(arguments))
    file = flags.pop("config", "none")
    given = merge({} if file == "none" else config.read(Path(file)), flags)
    evaluated, resumed = given.get("eval", "none"), given.get("resume", "none")
    if evaluated == resumed == "none":
        return begin(given, flags)
    from train.config import stored  # imports NumPy, which `--help` does not need

    if evaluated != "none":
        return stored.of_checkpoint(Path(evaluated), given, flags)
    state = stored.find_state(resumed, given.get("output"), naming.newest(_folder(given)))
    return begin(given, flags) if state is None else stored.of_state(state, given)


def merge(file: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """The settings file, overridden by the flags.

    A recipe given as a flag overrides the file's values for the settings of that recipe. A device or an optimizer given
    as a flag, or the optimizer of a recipe given as a flag, if it differs from the file's, drops the file's settings
    that suit one device, `threads` and `graph`, or the settings of either optimizer in `BY_OPTIMIZER`.
    """
    model = {**defaults(), **file, **flags}["model"]
    preset = recipe(flags["recipe"], model) if "recipe" in flags else {}
    dropped = set(preset)
    device = file.get("device", defaults()["device"])
    if flags.get("device", device) != device:
        dropped |= {"threads", "graph"}
    opt = file.get("opt", defaults()["opt"])
    chosen = {**preset, **flags}.get("opt", opt)
    if chosen != opt:
        dropped |= {*BY_OPTIMIZER.get(opt, {}), *BY_OPTIMIZER.get(chosen, {})}
    return {**{name: value for name, value in file.items() if name not in dropped}, **flags}


def begin(given: dict[str, Any], flags: dict[str, Any]) -> Settings:
    """The settings of a new run. Rank 0 prints which of the flags have no effect."""
    settings = new_run(given)
    for line in settings.without_effect(flags) if ranks()[0] == 0 else ():
        print(line, file=sys.stderr)
    return settings


def new_run(given: dict[str, Any]) -> Settings:
    """Precedence, highest first: `given`, the optimizer's values, the recipe, the defaults; then derived defaults."""
    dataset, model, name, opt = ({**defaults(), **given}[key] for key in ("dataset", "model", "recipe", "opt"))
    values = {**defaults(dataset), **recipe(name, model), **BY_OPTIMIZER.get(opt, {}), **given}
    config.check_texts(values)
    epochs, warmup = values["epochs"], values["warmup_epochs"]
    if warmup > epochs:
        if "warmup_epochs" in given:
            raise InputError(f"--warmup-epochs {warmup:g} is more than --epochs {epochs}")
        values["warmup_epochs"] = epochs / 10
    if "threads" not in given and (values["device"] != "cpu" or ranks()[1] > 1):  # several ranks share the cores
        values["threads"] = 1
    if values["scale"] != FLAGS["scale"].default and "crop_padding" not in given:
        values["crop_padding"] = 0  # random resized crops replace shifted crops
    output = values.get("output") or naming.unused(_folder(given))
    settings = Settings(**{"graph": False, **values, "output": output, "resume": "none"})
    return settings if "graph" in given else replace(settings, graph=not settings.why_no_graph)


def _folder(given: dict[str, Any]) -> str:
    """The default of --output, before a number is appended."""
    names = {**defaults(), **given}
    return f"runs/{names['model']}-{names['dataset']}"


if __name__ == "__main__":
    sys.exit(supervised(main))
