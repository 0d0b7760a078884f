"""The READMEs: examples run and print the stated output; files and names in the text exist."""

import csv
import re
import shlex
from pathlib import Path

import pytest

import models
from minigrad import distributed
from tests.cuda.runner import needs_compiler
from train import __main__ as train

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    *(page for name in ("minigrad", "models", "train", "tests") for page in (ROOT / name).rglob("README.md")),
]
EXAMPLES = [
    pytest.param(
        example,
        id=f"{page.relative_to(ROOT)}-{i}",
        marks=[needs_compiler] if "tests.cuda.runner" in example else [],
    )
    for page in PAGES
    for i, example in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_print_the_stated_output(example, capsys):
    try:
        exec(compile(example, "README.md", "exec"), {})
    finally:
        if distributed.is_initialized():  # by the example of several processes
            distributed.destroy_process_group()
    printed, stated = capsys.readouterr().out, re.findall(r"^print\(.*\)  # (.*)$", example, re.MULTILINE)
    assert len(stated) == example.count("print(")
    for line, expected in zip(printed.splitlines(), stated, strict=True):
        assert line == expected


def test_one_example_needs_a_compiler():
    assert [param.id.rsplit("-", 1)[0] for param in EXAMPLES if param.marks] == ["minigrad/README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_on_a_page_exist(page):
    """Files and folders in backquotes, relative to the repository, or anywhere below the folder of the page."""
    names = re.findall(r"`([\w./-]+(?:/|\.(?:py|cu|cuh|md)))`", page.read_text())
    assert names
    for name in names:
        assert (ROOT / name).exists() or any(page.parent.rglob(name.rstrip("/"))), name


def test_programs_named_in_pages_and_messages_exist():
    """Each `python -m NAME` names a module that can be run."""
    files = [
        ROOT / "README.md",
        *(path for name in ("minigrad", "models", "train", "tests") for path in (ROOT / name).rglob("*")),
    ]
    texts = [path.read_text(encoding="utf-8") for path in files if path.suffix in (".py", ".md")]
    names = {name for text in texts for name in re.findall(r"python -m ((?:models|train|tests)\b[a-z_.]*)", text)}
    assert len(names) > 10
    for name in names:
        path = ROOT / name.rstrip(".").replace(".", "/")
        main = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert main.exists() and "__main__" in main.name + main.read_text(encoding="utf-8"), name


def test_names_in_the_lessons_are_defined_in_their_files():
    """A lesson says `**Read** `file`: `Name`, `name``; each name is defined in the file."""
    course = (ROOT / "minigrad" / "README.md").read_text()
    lessons = re.findall(r"\*\*Read\*\* (.*?)\n\n", course, re.DOTALL)
    assert len(lessons) == 22  # the first lesson shows its code
    found = 0
    for lesson in lessons:
        for file, names in re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:,\s)?)+)", lesson):
            path = ROOT / file if (ROOT / file).exists() else ROOT / "minigrad" / file
            for name in re.findall(r"`(\w+)`", names):
                assert re.search(rf"^ *(class|def) {name}\b|^{name}\b", path.read_text(), re.MULTILINE), (file, name)
                found += 1
    assert found > 40


def test_results_match_the_logs():
    """In each row of the table of results with a log, the accuracy, time and number of epochs are those in the log."""
    pattern = r"^\| .* \| `(\w+)`, ([\d,]+) \| `(.*)` \| ([\d.]+) % \(\[log\]\((\S+)\)\) \| (\d+) min \|$"
    rows = re.findall(pattern, TEXT, re.MULTILINE)
    assert len(rows) == TEXT.count("([log](")
    for model, parameters, command, accuracy, log, minutes in rows:
        with (ROOT / log).open(newline="") as file:
            epochs = list(csv.DictReader(file))
        settings = train.parse(shlex.split(command))
        assert settings.model == model and settings.epochs == len(epochs) == int(epochs[-1]["epoch"])
        assert f"{sum(p.data.size for p in models.create_model(model).parameters()):,}" == parameters
        assert f"{100 * float(epochs[-1]['test_acc']):.1f}" == accuracy
        assert round(sum(float(epoch["seconds"]) for epoch in epochs) / 60) == int(minutes)


def test_no_message_says_to_install_minigrad():
    """`minigrad` on PyPI is another project, so messages name the missing package, not an extra of minigrad."""
    for folder in ("minigrad", "models", "train"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"minigrad\[|install minigrad", file.read_text(encoding="utf-8")), file
