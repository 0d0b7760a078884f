"""What the comparisons with PyTorch share."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """PyTorch's sums do not depend on how many cores there are."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
