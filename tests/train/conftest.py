"""What tests of the training program share."""

import sys

import pytest

from train import shapes


@pytest.fixture(scope="package")
def dataset():
    """60 images to train on, 20 to test on."""
    return shapes.load(60, 20)


@pytest.fixture
def no_pictures(monkeypatch):
    """They take longer than all else in a small run."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
