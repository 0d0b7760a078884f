"""Programs print in any terminal encoding: characters that the encoding lacks are escaped."""

import ast
import io
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from models import predict
from models.terminal import plural, table, unrecognized

ROOT = Path(__file__).parent.parent
PROGRAMS = [
    path
    for folder in ("minigrad", "models", "train", "tests/gpu", "tests/benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if '\nif __name__ == "__main__":\n' in path.read_text(encoding="utf-8") and not path.name.startswith("test_")
]


def identifier(value):
    return module(value) if isinstance(value, Path) else value


def parses(path):
    """True if the program parses arguments; other programs would run despite --help."""
    return re.search(r"ArgumentParser|parser\(\)|parse\(", path.read_text(encoding="utf-8"))


def module(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")


MODELS = ROOT / "models" / "__main__.py"
CALLS = [(path, flag) for path in PROGRAMS for flag in ("--help", "--no-such-flag-λ") if parses(path)]


def test_columns_of_a_table_are_aligned_with_wide_letters():
    lines = table([["日本", "1"], ["cafe\u0301", "22"], ["abcdef", "3"]], left=[0]).splitlines()
    assert lines == ["日本     1", "cafe\u0301    22", "abcdef   3"]


def test_plural_adds_s_or_es():
    assert [plural(n, noun) for n, noun in ((1, "epoch"), (0, "step"), (10_000, "class"), (1, "class"))] == [
        *("1 epoch", "0 steps", "10,000 classes", "1 class")
    ]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--topk", "3"], "--top-k"),
        (["--batch_size=3"], "--batch-size"),
        (["--top", "3"], "--top-k"),
        (["\u2014device", "cuda", "--jsn"], "--device, --json"),
        (["--qqqqqq"], ""),
        (["--", "-5"], ""),
    ],
)
def test_unknown_flags_get_a_suggestion(arguments, hint):
    message = unrecognized(arguments, predict.parser()._option_string_actions)
    assert message == f"unrecognized arguments: {' '.join(arguments)}" + (f"; did you mean {hint}?" if hint else "")


@pytest.mark.parametrize(
    "path", [path for path in PROGRAMS if parses(path) and path.parent.name != "train"], ids=module
)
def test_programs_refuse_abbreviated_flags(path, monkeypatch, capsys):
    """`--hel` is an abbreviation of --help, which argparse would accept."""
    required = ["--model", "vit_tiny_cifar", "--against", "golden"] if module(path) == "models.compare" else []
    monkeypatch.setattr(sys, "argv", ["program", "--hel", *required])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 2 and "unrecognized arguments: --hel; did you mean --help?" in capsys.readouterr().err


@pytest.mark.parametrize("path", [path for path, flag in CALLS if flag == "--help"], ids=module)
def test_help_fits_80_columns(path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["program", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 0
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize(
    ("path", "argument"), [*CALLS, (MODELS, "swin_nano_cifar"), (MODELS, "vit_t*")], ids=identifier
)
def test_programs_print_in_any_encoding(path, argument, encoding, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding, errors="strict"))
    monkeypatch.setattr(sys, "argv", ["program", argument])
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        assert end.code in (0, 2)
    streams = sys.stdout, sys.stderr
    assert [stream.errors for stream in streams] == ["backslashreplace"] * 2
    assert sum(stream.tell() for stream in streams)


@pytest.mark.parametrize("path", PROGRAMS, ids=module)
def test_programs_set_the_error_handler_of_their_streams(path):
    """`main` sets the handler before parsing arguments, which may print; predict and visualize share `command`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name: ast.unparse(node.body) for node in tree.body if isinstance(node, ast.FunctionDef)}
    main = functions["main"] + functions.get("command", "")
    assert any(call in main for call in ("escape_unencodable()", "command(parser()", "backslashreplace")), path


def test_error_with_an_undecodable_file_name_in_ascii(tmp_path):
    """A file name may contain bytes that are not valid in any encoding."""
    data = tmp_path / os.fsdecode(b"caf\xc3\xa9 \xff")
    flags = ["--dataset", "folder", "--data-dir", data.name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"}
    result = subprocess.run(
        [sys.executable, "-m", "train", *flags], cwd=tmp_path, env=environment, capture_output=True, timeout=100
    )
    assert result.returncode == 2 and result.stderr.isascii() and result.stderr.count(b"\n") == 1
    assert b"caf\\" in result.stderr
