"""ViT against PyTorch's own encoder layers: logits and the gradient of every parameter, in float64."""

import numpy as np
import pytest

from minigrad import Tensor
from models.vit import VisionTransformer
from tests.models import formula

torch = pytest.importorskip("torch")

# Names here -> names in torch.nn.TransformerEncoderLayer.
_BLOCK = {
    "attn.qkv.": "self_attn.in_proj_",
    "attn.proj.": "self_attn.out_proj.",
    "mlp.fc1.": "linear1.",
    "mlp.fc2.": "linear2.",
}


class TorchViT(torch.nn.Module):
    """The same architecture from PyTorch's parts: a pre-norm TransformerEncoder between two linear maps."""

    def __init__(self, vit: VisionTransformer, num_heads: int) -> None:
        super().__init__()
        shapes = {name: p.shape for name, p in vit.named_parameters()}
        D, C, P, _ = shapes["patch_embed.proj.weight"]
        self.proj = torch.nn.Conv2d(C, D, P, P)
        self.cls_token = torch.nn.Parameter(torch.zeros(shapes["cls_token"]))
        self.pos_embed = torch.nn.Parameter(torch.zeros(shapes["pos_embed"]))
        layer = torch.nn.TransformerEncoderLayer(
            D, num_heads, shapes["blocks.0.mlp.fc1.bias"][0], dropout=0.0, activation="gelu",
            layer_norm_eps=1e-6, batch_first=True, norm_first=True,
        )  # fmt: skip
        final = torch.nn.LayerNorm(D, eps=1e-6)
        self.encoder = torch.nn.TransformerEncoder(layer, len(vit.blocks), final, enable_nested_tensor=False)
        self.fc = torch.nn.Linear(D, shapes["pre_logits.fc.bias"][0]) if "pre_logits.fc.bias" in shapes else None
        self.head = torch.nn.Linear(*shapes["head.weight"][::-1])
        self.double()
        own = dict(self.named_parameters())
        self.twins = {name: own[self.renamed(name)] for name in shapes}
        with torch.no_grad():
            for name, parameter in self.twins.items():
                parameter.copy_(torch.from_numpy(formula.weight(name, *parameter.shape)))

    @staticmethod
    def renamed(name: str) -> str:
        if name.startswith("blocks."):
            for ours, theirs in _BLOCK.items():
                name = name.replace(ours, theirs)
            return name.replace("blocks.", "encoder.layers.")
        return name.replace("patch_embed.", "").replace("pre_logits.", "").replace("norm.", "encoder.norm.")

    def forward(self, x):
        x = self.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        y = self.encoder(x)[:, 0]
        return self.head(y if self.fc is None else torch.tanh(self.fc(y)))


@pytest.mark.parametrize(
    ("config", "images"),
    [
        ({"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "representation_size": 20}, 2),
        ({"img_size": 24, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0}, 3),
        ({"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 9, "num_heads": 3}, 1),  # vit_tiny_cifar
    ],
)
def test_logits_and_all_gradients(config, images):
    vit = formula.fill(VisionTransformer(num_classes=7, **config))
    twin = TorchViT(vit, config["num_heads"])
    x = formula.stream("x.vit", images, 3, config["img_size"], config["img_size"])
    probe = formula.stream("loss", images, 7)
    pixels = Tensor(x, requires_grad=True)
    logits = vit(pixels)
    (logits * Tensor(probe)).sum().backward()
    torch_pixels = torch.from_numpy(x).requires_grad_()
    expected = twin(torch_pixels)
    (expected * torch.from_numpy(probe)).sum().backward()

    def worst(ours: np.ndarray, theirs) -> float:
        theirs = theirs.detach().numpy()
        return float(abs(ours - theirs).max() / abs(theirs).max())

    assert worst(logits.numpy(), expected) < 1e-12
    assert worst(pixels.grad.numpy(), torch_pixels.grad) < 1e-11
    for name, parameter in vit.named_parameters():
        assert worst(parameter.grad.numpy(), twin.twins[name].grad) < 1e-11, name
