"""README is true: its examples run, and print what it says; the files it sends the reader to are there."""

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_runs_and_prints_what_it_says(example, capsys):
    exec(compile(example, "README.md", "exec"), {})
    printed, promised = capsys.readouterr().out, re.findall(r"^print\(.*\)  # (.*)$", example, re.MULTILINE)
    assert len(promised) == example.count("print(")
    for line, expected in zip(printed.splitlines(), promised, strict=True):
        assert line == expected


def test_the_files_on_the_reading_list_exist():
    rows = re.findall(r"^\| L\d \| (.*?) \|", TEXT, re.MULTILINE)
    assert len(rows) >= 9
    for row in rows:
        folder = ROOT
        for name in re.findall(r"`([\w/.]+)`", row):
            path = ROOT / name if (ROOT / name).exists() else folder / name
            assert path.exists(), name
            folder = path.parent


def test_no_file_of_the_package_is_left_out_of_the_reading_list():
    listed = set(re.findall(r"`(?:\w+/)*([\w.]+?)/?`", "".join(re.findall(r"^\| L\d.*$", TEXT, re.MULTILINE))))
    present = {
        path.name for path in (ROOT / "minigrad").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert present - {"__init__.py"} <= listed


def test_accuracies_are_those_of_their_logs():
    """Each row of the table of runs with a log: the accuracy after its last epoch, and the minutes that it took."""
    rows = re.findall(r"^\|.*\| ([\d.]+) % \(\[log\]\((\S+)\)\) \| (\d+) min \|$", TEXT, re.MULTILINE)
    assert rows
    for accuracy, log, minutes in rows:
        with (ROOT / log).open(newline="") as file:
            epochs = list(csv.DictReader(file))
        assert f"{100 * float(epochs[-1]['test_acc']):.1f}" == accuracy
        assert round(sum(float(epoch["seconds"]) for epoch in epochs) / 60) == int(minutes)


def test_no_message_names_an_extra_of_another_project():
    """`minigrad` on the package index is another project: a message names the library that is missing."""
    for folder in ("minigrad", "models", "train"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"minigrad\[|install minigrad", file.read_text(encoding="utf-8")), file
