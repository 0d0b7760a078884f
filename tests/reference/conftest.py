"""Shared by the comparisons with PyTorch."""

from importlib.util import find_spec

import pytest


def skip_without(library: str) -> None:
    """Skip the test if the library is not installed, without an import: `models.compare.libraries` imports it."""
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """PyTorch with one thread: its sums do not depend on the number of cores."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
