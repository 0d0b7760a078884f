"""README is true: its examples run, and print what it says; the files it sends the reader to are there."""

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    *(page for name in ("minigrad", "models", "train", "tests") for page in (ROOT / name).rglob("README.md")),
]
EXAMPLES = [
    pytest.param(example, id=f"{page.relative_to(ROOT)}-{i}")
    for page in PAGES
    for i, example in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs_and_prints_what_it_says(example, capsys):
    exec(compile(example, "README.md", "exec"), {})
    printed, promised = capsys.readouterr().out, re.findall(r"^print\(.*\)  # (.*)$", example, re.MULTILINE)
    assert len(promised) == example.count("print(")
    for line, expected in zip(printed.splitlines(), promised, strict=True):
        assert line == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_files_that_a_page_names_exist(page):
    """Files and folders in backquotes: in the page's folder or anywhere below it, or from the top of the repository."""
    names = re.findall(r"`([\w./-]+(?:/|\.(?:py|cu|cuh|md)))`", page.read_text())
    assert names
    for name in names:
        assert (ROOT / name).exists() or any(page.parent.rglob(name.rstrip("/"))), name


def test_the_lessons_name_what_is_in_their_files():
    """`**Read** `file`: `Name`, `name``: each name is defined in that file."""
    course = (ROOT / "minigrad" / "README.md").read_text()
    lessons = re.findall(r"\*\*Read\*\* (.*?)\n\n", course, re.DOTALL)
    assert len(lessons) == 20  # the first lesson shows its code
    found = 0
    for lesson in lessons:
        for file, names in re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:,\s)?)+)", lesson):
            path = ROOT / file if (ROOT / file).exists() else ROOT / "minigrad" / file
            for name in re.findall(r"`(\w+)`", names):
                assert re.search(rf"^ *(class|def) {name}\b|^{name}\b", path.read_text(), re.MULTILINE), (file, name)
                found += 1
    assert found > 40


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
