"""Resized position embeddings and relative position bias tables against timm and PyTorch."""

import numpy as np
import pytest

from minigrad import Tensor
from models.compare import libraries
from models.swin import resample_relative_position_bias_table
from models.vit import resample_pos_embed

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 7)), ((6, 4), (3, 8)), ((14, 14), (24, 24)), ((24, 24), (7, 7))])
@pytest.mark.parametrize("antialias", [True, False])
def test_resized_position_embeddings_equal_timm(old, new, antialias):
    libraries.load("torchvision")  # timm imports it
    from timm import layers

    x = np.random.default_rng(0).standard_normal((1, 1 + old[0] * old[1], 6)).astype(np.float32)
    expected = layers.resample_abs_pos_embed(torch.from_numpy(x), new_size=new, old_size=old, antialias=antialias)
    actual = resample_pos_embed(Tensor(x), old, new, antialias)
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), atol=1e-5)  # timm computes in float32


@pytest.mark.parametrize(("old", "new"), [(7, 12), (12, 7), (4, 8)])
def test_resized_bias_tables_equal_pytorch(old, new):
    table = np.random.default_rng(0).standard_normal(((2 * old - 1) ** 2, 3))
    grid = torch.from_numpy(table).reshape(1, 2 * old - 1, 2 * old - 1, 3).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, size=(2 * new - 1, 2 * new - 1), mode="bicubic")
    actual = resample_relative_position_bias_table(Tensor(table), new)
    np.testing.assert_allclose(actual.numpy(), expected.permute(0, 2, 3, 1).reshape(-1, 3).numpy(), atol=1e-13)
