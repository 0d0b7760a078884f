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
