"""L7: settings files: TOML with one line per flag. Each run writes its settings to `args.toml`, for --config.

model = "vit_tiny_cifar"
epochs = 100
mixup = 0.8
model-ema = true        # or model_ema
"""

import codecs
import json
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from train.config.errors import InputError
from train.config.flags import option, shorten
from train.config.settings import FLAGS, Settings


def read(path: Path) -> dict[str, Any]:
    """The settings in a file, or in the file `args.toml` of a run's folder, checked like the command-line flags.

    Raises:
        InputError: the file is missing or not TOML, or has an unknown name or an invalid value.
    """
    path = path / "args.toml" if path.is_dir() else path
    try:
        table = tomllib.loads(_decoded(path.read_bytes()))
    except OSError as error:
        raise InputError(f"cannot read --config {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # from decoding UTF-8 or TOML
        reason = " ".join(str(error).split())
        hint = "; strings need quotation marks" if reason.startswith("Invalid value") else ""
        raise InputError(f"--config {path} is not TOML: {reason}{hint}") from None
    settings: dict[str, Any] = {}
    for key, value in table.items():
        name, where = key.replace("-", "_"), f"--config {path}: {shorten(key)}"
        if isinstance(value, dict):
            raise InputError(f"{where} is a table; a settings file has none: delete the line [{key}]")
        if name not in FLAGS:
            close = get_close_matches(name, FLAGS, n=1)
            hint = f"; did you mean {close[0]}?" if close else " (--help lists them)"
            raise InputError(f"{where} is not a setting{hint}")
        if name in settings:
            raise InputError(f"{where} is given twice, with - and with _")
        settings[name] = _checked(where, name, value)
    return settings


def _decoded(content: bytes) -> str:
    """The text of a file in UTF-8, or in the encoding of its byte order mark, which Windows programs write.

    Raises:
        ValueError: the bytes are invalid in this encoding.
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
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16: this mark begins with UTF-16's
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def complete(path: Path, values: Mapping[str, Any]) -> Settings:
    """The settings `values` stored in the file `path` of a run, checked like the command-line flags.

    Raises:
        InputError: a setting is missing, unknown or invalid.
    """
    if odd := set(values) ^ set(FLAGS):
        name = min(odd)
        difference = f"lacks {option(name)}" if name in FLAGS else f"has the unknown setting {shorten(name)}"
        raise InputError(f"{path} is of another version of this program: it {difference}")
    where = f"{path} is damaged: its setting"
    return Settings(**{name: _checked(f"{where} {name}", name, value) for name, value in values.items()})


def _checked(where: str, name: str, value: Any) -> Any:
    try:
        return FLAGS[name].check(value)
    except ValueError as error:
        raise InputError(f"{where} {error}") from None


def check_texts(values: Mapping[str, Any]) -> None:
    """Refuse strings that TOML cannot hold, such as a file name with surrogates."""
    for setting, value in values.items():
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in value):
            raise InputError(f"{option(setting)}: {value!a} cannot be encoded in UTF-8, as the files of a run are")


def text(settings: Mapping[str, Any]) -> str:
    """The settings as TOML. A setting of None is omitted: None is its default."""
    lines = [f"{name} = {_toml(value)}" for name, value in settings.items() if value is not None]
    return "\n".join(["# again: python -m train --config THIS --output ELSEWHERE", *lines, ""])


def _toml(value: Any) -> str:
    if isinstance(value, str):  # a JSON string is a TOML string, except for the delete character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return repr(list(value))
    return str(value).lower() if isinstance(value, bool) else repr(value)
