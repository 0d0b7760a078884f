"""L7: settings files: TOML with one line per flag. Each run writes its settings to `args.toml`, which repeats the run.

model = "vit_tiny_cifar"
epochs = 100
mixup = 0.8
model-ema = true        # or model_ema
"""

import argparse
import codecs
import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from train.config.errors import InputError
from train.config.settings import Settings

_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    int | None: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a text in quotation marks"),
}
"""The TOML types of a setting of each type, and their description."""


def read(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Read a settings file. Each value gets the check of the flag of the same name.

    Raises:
        InputError: the file is missing or no TOML, or has an unknown name or an invalid value.
    """
    try:
        table = tomllib.loads(_decoded(path.read_bytes()))
    except OSError as error:
        raise InputError(f"cannot read --config {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of these are the errors of UTF-8 and TOML
        raise InputError(f"--config {path} is no TOML: {' '.join(str(error).split())}") from None
    actions = _actions(parser)
    settings: dict[str, Any] = {}
    for key, value in table.items():
        name, where = key.replace("-", "_"), f"--config {path}: {_shown(key)}"
        if name not in actions:
            close = get_close_matches(name, actions, n=1)
            hint = f"; did you mean {close[0]}?" if close else " (--help lists them)"
            raise InputError(f"{where} is no setting{hint}")
        if name in settings:
            raise InputError(f"{where} is there twice, with - and with _")
        settings[name] = _value(where, value, actions[name])
    return settings


def _decoded(content: bytes) -> str:
    """The text of a file in UTF-8, or in the encoding whose byte order mark it begins with, as Windows writes it.

    Raises:
        ValueError: bytes that have no meaning in this encoding.
    """
    mark, encoding = next(((mark, name) for mark, name in _MARKS.items() if content.startswith(mark)), (b"", "utf-8"))
    content = content.removeprefix(mark)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(encoding).count("\n") + 1
        raise ValueError(f"{error}, in line {line}; save the file as UTF-8") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"a zero byte in line {line}, as in UTF-16 without a byte order mark; save the file as UTF-8")
    return text


_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def complete(path: Path, values: Mapping[str, Any], parser: argparse.ArgumentParser) -> Settings:
    """The settings `values` stored in the file `path` of a run, with the checks of the flags.

    Raises:
        InputError: a setting is missing, unknown or invalid.
    """
    actions = _actions(parser)
    if odd := set(values) ^ set(actions):
        name = min(odd).replace("_", "-")
        raise InputError(f"{path} is of another version of this program, without --{name} or with it")
    where = f"{path} is damaged: its setting"
    for name, value in values.items():
        if not (value is None and _TYPES[name] == int | None):
            _value(f"{where} {name}", value, actions[name])
    return Settings(**values)


_TYPES = {field.name: field.type for field in fields(Settings)}


def _actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The flag of each setting."""
    return {action.dest: action for action in parser._actions if action.dest in _TYPES}


def _value(where: str, value: Any, action: argparse.Action) -> Any:
    """Check the type and range of one setting."""
    kind = _TYPES[action.dest]
    accepted, must_be = _KINDS[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{where} must be {must_be}, got {_shown(value)}")
    if action.choices is not None and value not in action.choices:
        raise InputError(f"{where} must be one of {', '.join(action.choices)}, got {_shown(value)}")
    if action.type is None:
        return value
    try:
        return action.type(str(value))  # type: ignore[operator]
    except argparse.ArgumentTypeError as error:
        raise InputError(f"{where} {error}") from None


def check_texts(values: Mapping[str, Any]) -> None:
    """Refuse strings that TOML cannot hold, such as a file name with surrogates."""
    for setting, value in values.items():
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in value):
            raise InputError(f"--{setting.replace('_', '-')}: {value!a} is no text in UTF-8, as the files of a run are")


def text(settings: Mapping[str, Any]) -> str:
    """Settings as TOML. A setting of None is left out: None is its default."""
    lines = [f"{name} = {_toml(value)}" for name, value in settings.items() if value is not None]
    return "\n".join(["# again: python -m train --config THIS --output ELSEWHERE", *lines, ""])


def _toml(value: Any) -> str:
    if isinstance(value, str):  # JSON's strings are TOML's, but for the delete character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _shown(value: Any) -> str:
    """The repr of a value, on one line and cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
