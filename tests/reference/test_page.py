"""minigrad/PYTORCH.md: its tables are those that the code gives."""

import pytest

import minigrad
from tests.reference.page import DIFFERENCES, PAGE, shown, written
from tests.reference.statements import value_of

torch = pytest.importorskip("torch")


def test_tables_are_up_to_date():
    text = PAGE.read_text(encoding="utf-8")
    assert text == written(text, torch), "write the tables anew: python -m tests.reference.page"


@pytest.mark.parametrize("line", DIFFERENCES)
def test_each_difference_is_one(line):
    assert shown(value_of(torch, line)) != shown(value_of(minigrad, line))
