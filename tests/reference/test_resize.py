"""Position embeddings and bias tables resized as timm and PyTorch resize them."""

import numpy as np
import pytest

from minigrad import Tensor
from models.compare import libraries
from models.swin import resample_relative_position_bias_table
from models.vit import resample_pos_embed

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 7)), ((6, 4), (3, 8)), ((14, 14), (24, 24)), ((24, 24), (7, 7))])
@pytest.mark.parametrize("antialias", [True, False])
def test_position_embeddings(old, new, antialias):
    libraries.load("torchvision")  # timm imports it
    from timm import layers

    x = np.random.default_rng(0).standard_normal((1, 1 + old[0] * old[1], 6)).astype(np.float32)
    theirs = layers.resample_abs_pos_embed(torch.from_numpy(x), new_size=new, old_size=old, antialias=antialias)
    ours = resample_pos_embed(Tensor(x), old, new, antialias)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-5)  # timm computes in float32


@pytest.mark.parametrize(("old", "new"), [(7, 12), (12, 7), (4, 8)])
def test_bias_tables(old, new):
    table = np.random.default_rng(0).standard_normal(((2 * old - 1) ** 2, 3))
    grid = torch.from_numpy(table).reshape(1, 2 * old - 1, 2 * old - 1, 3).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(grid, size=(2 * new - 1, 2 * new - 1), mode="bicubic")
    ours = resample_relative_position_bias_table(Tensor(table), new)
    np.testing.assert_allclose(ours.numpy(), theirs.permute(0, 2, 3, 1).reshape(-1, 3).numpy(), atol=1e-13)
