"""L7: the command-line parser, from the flags that `Settings` declares. Imports no NumPy: `--help` is immediate."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from train.config import recipes
from train.config.errors import InputError
from train.config.flags import Flag, Pair, option, show
from train.config.settings import FLAGS


def parser() -> argparse.ArgumentParser:
    """The parser of all flags. A flag that is not given sets no attribute."""
    parser = _Parser(
        prog="python -m train",
        usage="python -m train [FLAG ...]",
        description="Train an image classifier. Without flags: a small vision transformer on the\n"
        "generated dataset `shapes`, which needs no download and takes half a minute to\n"
        "seven minutes. In parentheses: the default.",
        epilog=f"what the recipes set (why: train/config/recipes.py):\n{_recipes()}\n\n"
        f"{_optimizers()}\n\n"
        "--patience N stops after N epochs without a better test accuracy. The learning\n"
        "rate decays over all --epochs in any case.\n\n"
        "--dataset folder reads images from DIR/train/CLASS/ and DIR/val/CLASS/;\n"
        "with --val-split, from DIR/CLASS/.\n\n"
        "example: python -m train --model vit_tiny_cifar --dataset cifar10 \\\n"
        "           --recipe standard --device cuda",
        formatter_class=lambda prog: _Help(prog, max_help_position=32, width=80),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", help="TOML settings file; flags override it (none)", metavar="FILE")
    for flag in FLAGS.values():
        if flag.group:
            group = parser.add_argument_group(flag.group)
        group.add_argument(flag.option, help=flag.help, **_options(flag))
    return parser


def _options(flag: Flag) -> dict[str, Any]:
    """The keyword arguments of `add_argument` for a flag."""
    if flag.type is bool:
        action = argparse.BooleanOptionalAction if flag.negatable else "store_true"
        return {"action": action, "default": argparse.SUPPRESS}
    pair = {"nargs": 2, "action": _Pair} if flag.type == Pair else {}
    return {"metavar": flag.metavar, "type": _reader(flag), **pair}


class _Pair(argparse.Action):
    """Stores two values, if `Flag.check` accepts them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        try:
            setattr(namespace, self.dest, FLAGS[self.dest].check(values))
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None


def _reader(flag: Flag) -> Callable[[str], Any]:
    """`flag.read` with the error that argparse shows."""

    def read(argument: str) -> Any:
        try:
            return flag.read(argument)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _recipes() -> str:
    """The table of the recipes."""
    rows = {option(setting): map(show, values) for setting, values in recipes.TABLE.items()}
    for family, overrides in recipes.BY_FAMILY.items():
        rows |= {f"{option(setting)} ({family})": map(show, values) for setting, values in overrides.items()}
    lines = [("", *recipes.NAMES), *((name, *values) for name, values in rows.items())]
    return "\n".join("  {:20}{:8}{:7}{:22}{}".format(*line) for line in lines)


def _optimizers() -> str:
    """What --opt sets, one line for each optimizer."""
    return "\n".join(
        f"--opt {name} sets {' and '.join(f'{option(setting)} {show(value)}' for setting, value in values.items())}, "
        "also in a recipe."
        for name, values in recipes.BY_OPTIMIZER.items()
    )


class _Help(argparse.RawDescriptionHelpFormatter):
    def _format_action_invocation(self, action: argparse.Action) -> str:
        """`--[no-]amp`, where argparse has `--amp, --no-amp`."""
        if isinstance(action, argparse.BooleanOptionalAction):
            return f"--[no-]{action.option_strings[0][2:]}"
        return super()._format_action_invocation(action)


class _Parser(argparse.ArgumentParser):
    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """argparse's, but the error for an unknown flag suggests a known flag."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            from models.terminal import unrecognized  # imports NumPy, which `--help` does not need

            self.error(unrecognized(unknown, self._option_string_actions))
        return found

    def error(self, message: str) -> NoReturn:
        """Raise InputError with the message on one line, without argparse's usage text."""
        raise InputError(f"{message} (--help lists all flags)")
