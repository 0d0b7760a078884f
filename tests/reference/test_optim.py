"""The moving average of a model against timm's."""

from importlib.util import find_spec

import numpy as np
import pytest

from minigrad import Tensor, nn, optim
from models.compare import libraries

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(find_spec("timm") is None, reason="needs timm")  # importing it may need help


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.9998])
def test_ema(decay):
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    theirs = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    names = list(ours.state_dict())
    rng = np.random.default_rng(0)

    def fill():
        for name, tensor in ours.state_dict().items():
            tensor.data[...] = rng.uniform(0.5, 1.5, tensor.shape)  # no variance is negative
            theirs.state_dict()[name].copy_(torch.from_numpy(tensor.data))

    fill()
    average = optim.EMA(ours, decay)
    reference = libraries.load("timm").utils.ModelEmaV3(theirs, decay)
    for _ in range(5):
        fill()
        average.update()
        reference.update(theirs)
    expected, found = reference.module.state_dict(), average.state_dict()
    for name in names:
        np.testing.assert_allclose(found[name], expected[name].numpy(), rtol=1e-6, atol=1e-7, err_msg=name)
    images = rng.standard_normal((2, 3, 5, 5)).astype(np.float32)
    with average.applied():
        np.testing.assert_allclose(
            ours.eval()(Tensor(images)).numpy(),
            reference(torch.from_numpy(images)).detach().numpy(), rtol=1e-4, atol=1e-5,
        )  # fmt: skip
