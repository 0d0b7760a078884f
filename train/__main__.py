"""L7: the command line: `python -m train --help`."""

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
    """Run the command line; returns the exit code: 0, 2 for a mistake in the input, 130 after Ctrl-C."""
    try:
        settings = parse(arguments)
        from train.run import run  # NumPy and the models load here, not before `--help`

        return run(settings)
    except KeyboardInterrupt:
        print("\ninterrupted at once; what was saved before is kept", file=sys.stderr)
        return 130
    except InputError as error:
        print(f"python -m train: {error}", file=sys.stderr)
        return 2


def parse(arguments: Sequence[str] | None) -> Settings:
    """The settings of a run. One that goes on has those it had; a checkpoint is tested with those of its run."""
    flags = parser()
    said = {name: value for name, value in vars(flags.parse_args(arguments)).items() if value is not None}
    file = config.read(Path(said.pop("config")), flags) if "config" in said else {}
    given = {**file, **said}
    if given.get("eval", "none") != "none":
        from train import report  # which needs NumPy, and `--help` none

        return report.settings(Path(given["eval"]), given)
    if given.get("resume", "none") != "none":
        from train import resume  # likewise

        if (state := resume.find(given, naming.newest(_folder(given)))) is not None:
            return resume.settings(state, given)
    return new_run(file, said)


def new_run(file: dict[str, Any], said: dict[str, Any]) -> Settings:
    """From the last word to the first: flags, settings file, recipe, dataset, all runs; and what follows from these.

    A recipe named by a flag goes before the file, as the flag does.
    """
    given = {**file, **said}
    dataset, model, name = ({**COMMON, **given}[key] for key in ("dataset", "model", "recipe"))
    chosen = recipe(name, model)
    layers = (file, chosen, said) if "recipe" in said else (chosen, file, said)
    values = {**COMMON, **BY_DATASET[dataset]}
    for layer in layers:
        values |= layer
    for setting, value in values.items():
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise InputError(f"--{setting.replace('_', '-')}: {value!a} is no UTF-8, as the files of a run are")
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
