"""The values in the pictures (Grad-CAM, position similarity) against PyTorch."""

import numpy as np
import pytest

import models
from minigrad import Tensor
from models.compare import formula
from models.compare.references import Reference
from models.visualize.attention import position_similarity
from models.visualize.gradcam import grad_cam
from tests.reference.conftest import skip_without

torch = pytest.importorskip("torch")

CASES = [
    ("convnext_atto_cifar", {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 20)}, "stages.2.1"),
    ("convnext_atto_cifar", {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 20), "img_size": 64}, "stages.3.0"),
    (
        "hybrid_nano_cifar",
        {"layers": (1, 2), "channels": (128, 128), "depth": 1},
        "patch_embed.backbone.stages.1.blocks.1",
    ),
    ("swin_nano_cifar", {"depths": (2, 2), "num_heads": (2, 4), "embed_dim": 8}, "layers.1.blocks.1"),
]


@pytest.mark.parametrize(("name", "overrides", "block"), CASES)
def test_grad_cam_equals_pytorch_on_a_timm_model(name, overrides, block):
    skip_without("timm")
    reference = Reference("timm", name, **overrides)
    model = formula.fill(models.create_model(name, **overrides)).eval()
    images, classes = formula.stream("images", 3, 3, *model.img_size), [0, 4, 9]
    pairs = {ours: theirs for theirs, ours in reference.corresponding_modules().items()}
    outputs = []
    layer = dict(reference.network.named_modules())[pairs[block]]
    handle = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    logits = reference.network(torch.from_numpy(images))
    handle.remove()
    score = logits[torch.arange(3), torch.tensor(classes)].sum()
    (gradient,) = torch.autograd.grad(score, outputs[0])
    A = outputs[0]
    if name.startswith("swin"):  # (B, H, W, C) -> (B, C, H, W)
        A, gradient = A.permute(0, 3, 1, 2), gradient.permute(0, 3, 1, 2)
    expected = torch.relu((gradient.mean((2, 3), keepdim=True) * A).sum(1)).detach().numpy()
    (actual,) = grad_cam(model, Tensor(images), classes, [block])
    assert actual.shape == expected.shape and expected.max() > 0
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-11 * expected.max())


def test_position_similarity_equals_pytorch():
    embedding = formula.stream("E", 12, 5)
    rows = torch.from_numpy(embedding)
    expected = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1).numpy()
    np.testing.assert_allclose(position_similarity(embedding, (3, 4)).reshape(12, 12), expected, atol=1e-14)
