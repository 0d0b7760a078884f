"""Fixtures of the tests of the training program."""

import sys

import pytest

from train.data import shapes


@pytest.fixture(scope="package")
def dataset():
    """60 training and 20 test images."""
    return shapes.load(60, 20)


@pytest.fixture
def no_pictures(monkeypatch):
    """Hide matplotlib: drawing dominates the time of a small run."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
