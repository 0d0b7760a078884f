"""All models against recorded runs of torchvision, timm and transformers; and bugs that these comparisons find."""

import json
from functools import partial

import numpy as np
import pytest

import minigrad
from minigrad import functional as F
from minigrad import nn
from minigrad.ops import window_attention
from models import convnext, convnextv2, deit, dinov2, hybrid, swin, swinv2, vit
from models.compare import formula, golden
from models.compare.differences import compare
from models.compare.record import CASES
from models.compare.trace import loss_weights, trace


def test_formula_has_known_values():
    known = [0.7278347454202369, 0.7813568787542086, 0.4991072145164014]
    np.testing.assert_array_equal((formula.stream("head.weight", 3) + 1) / 2, known)


@pytest.mark.parametrize(
    ("name", "logits"),
    [
        ("vit_pre_logits", [0.422513427336379, -0.3246980217075758, 0.22463752588336716, -0.1862015140159777]),
        ("swin_map_is_window", [0.9907251957422031, -1.5106145167419633, -1.446385986693757, -1.920866952909971]),
        ("swin_36x44", [0.5871596994700816, 0.16688986266173103, -0.9184769034590493, -0.8621476502176242]),
        ("swin_24x24_window_7", [0.795589325645124, 0.25912458826338547, -0.8528701486412257, -0.4523603945582221]),
        ("convnext_64x64", [-0.032702707064, 0.812494489301, -0.420134125729]),
        ("hybrid_63x33", [0.214805774808, -1.350806581169, -1.749036075954]),
    ],
)
def test_goldens_agree_with_an_earlier_recording(name, logits):
    """The earlier recording was made by another program with the same libraries."""
    recorded = golden.load(name).outputs["logits"].entries
    np.testing.assert_allclose(recorded[: len(logits)], logits, rtol=0, atol=1e-12)


def test_every_case_has_a_golden():
    assert golden.list_goldens() == sorted(CASES)
    for name, case in CASES.items():
        recorded = golden.load(name)
        assert (recorded.library, recorded.model, recorded.stream) == (case.library, case.model, case.stream)
        assert json.dumps([recorded.overrides, recorded.shape]) == json.dumps([case.overrides, case.shape])


@pytest.mark.parametrize("name", golden.list_goldens())
def test_outputs_and_gradients_agree(name):
    recorded = golden.load(name)
    model = recorded.create()
    found = trace(model, recorded.images())
    comparison = compare(found, recorded, model, golden.distance)
    assert not comparison.out_of_tolerance()

    blocks = set(model.blocks_by_name())
    assert blocks | {"logits"} <= {row.name for row in comparison.outputs}
    assert blocks | {"images"} <= {row.name for row in comparison.gradients}
    assert {row.name for row in comparison.parameters} == {parameter for parameter, _ in model.named_parameters()}

    logits = found.outputs["logits"]
    loss = float((logits * loss_weights(logits.shape)).sum())
    assert loss == pytest.approx(recorded.loss, rel=0, abs=1e-12 * abs(logits).sum())

    for parameter, gradient in found.parameters.items():
        if parameter.endswith("qkv.bias"):  # softmax is invariant to the key bias, a constant per query
            q, k, v = np.split(gradient, 3)
            assert abs(k).max() < 1e-12 * max(abs(q).max(), abs(v).max())


def with_eps(kind: type, eps: float):
    """Set the epsilon of all layers of this class."""

    def change(monkeypatch, model):
        for module in model.modules():
            if isinstance(module, kind):
                module.eps = eps

    return change


def replaced(owner, name: str, other):
    """Replace `owner.name` by `other(owner.name)`."""
    return lambda monkeypatch, model: monkeypatch.setattr(owner, name, other(getattr(owner, name)))


def keys_first(heads):
    def changed(self, x):
        q, k, v = heads(self, x)
        return k, q, v

    return changed


def columns_first(merge):
    def changed(self, x):
        quarters = [x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        return self.reduction(self.norm(minigrad.cat(quarters, dim=-1)))

    return changed


def always_shifted(layout):
    def changed(self, H, W):
        padded, _ = layout(self, H, W)
        return padded, (self.window_size // 2 * self.shifted,) * 2

    return changed


def shifted_before_padding(packed):
    def changed(self, x):
        _, (down, right) = self.layout(*x.shape[1:3])
        return packed(self, x.roll((-down, -right), (1, 2))).roll((down, right), (1, 2))

    return changed


def shifted_backwards(forward):
    def changed(self, qkv, bias, *, shift, **options):
        twice = 2 * shift[0], 2 * shift[1]
        return np.roll(
            forward(self, np.roll(qkv, twice, (1, 2)), bias, shift=shift, **options), (-twice[0], -twice[1]), (1, 2)
        )

    return changed


def norm_before_pooling(head):
    def changed(self, x, pre_logits=False):
        return self.head(self.norm(x.permute(0, 2, 3, 1)).mean((1, 2)))

    return changed


def relu_before_the_addition(forward):
    def changed(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(F.relu(self.norm3(self.conv3(y))) + self.downsample(x))

    return changed


def odd_padding_at_the_top(same_padding):
    return lambda *sizes: same_padding(*sizes)[::-1]


def unbiased(standardize):
    return lambda weight: standardize(weight) * (1 - 1 / np.prod(weight.shape[1:])) ** 0.5


def gate_last(forward):
    def changed(self, x):
        b, a = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(a) * b)

    return changed


def norm_before_attention(forward):
    def changed(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    return changed


def heads_exchanged(forward_head):
    def changed(self, x, pre_logits=False):
        return (self.head_dist(x[:, 0]) + self.head(x[:, 1])) / 2

    return changed


def without_normalized_keys(normalize):
    calls = []

    def changed(x, dim):
        calls.append(x)
        return normalize(x, dim=dim) if len(calls) % 2 else x  # queries first

    return changed


def scaled_to_the_window(monkeypatch, model):
    for block in model.blocks_by_name().values():
        block.attn.pretrained_window_size = 0


def linear_offsets(offsets):
    def changed(M, pretrained, *where):
        logarithmic = offsets(M, pretrained, *where)
        return logarithmic.sign() * (2 ** (3 * logarithmic.abs()) - 1) / 8

    return changed


def grn_before_gelu(mlp):
    return lambda self, x: self.pwconv2(F.gelu(self.grn(self.pwconv1(x))))


def gammas_of_one(monkeypatch, model):
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            parameter.data[...] = 1


BUGS = {
    "ViT's eps 1e-5": ("vit", with_eps(nn.LayerNorm, 1e-5), "blocks.0"),
    "ViT's eps 1e-12": ("vit", with_eps(nn.LayerNorm, 1e-12), "blocks.0"),
    "GELU by tanh": ("vit", replaced(F, "gelu", lambda gelu: partial(gelu, approximate="tanh")), "blocks.0"),
    "keys before queries": ("vit", replaced(vit.Attention, "heads", keys_first), "blocks.0"),
    "no layer scale in DeiT III": ("deit3", gammas_of_one, "blocks.0"),
    "no position embedding": (
        "dinov2_registers", replaced(deit.DeiT3, "embed", lambda embed: lambda self, x: self.add_prefix(x)),
        "blocks.0",
    ),
    "registers before the class token": (
        "dinov2_registers", replaced(dinov2.DINOv2, "prefix_tokens", lambda tokens: lambda self: tokens(self)[::-1]),
        "blocks.0",
    ),
    "the gate in the second half": ("dinov2_swiglu", replaced(dinov2.SwiGLUPacked, "forward", gate_last), "blocks.0"),
    "heads exchanged": (
        "deit_distilled", replaced(deit.VisionTransformerDistilled, "forward_head", heads_exchanged), "head_dist",
    ),
    "registers in the mean": (
        "dinov2_registers_avg", lambda monkeypatch, model: setattr(model, "num_prefix_tokens", 1), "fc_norm",
    ),
    "Swin's eps 1e-6": ("swin_36x44", with_eps(nn.LayerNorm, 1e-6), "patch_embed"),
    "a shift though one window covers the map": (
        "swin_map_is_window", replaced(swin.WindowAttention, "layout", always_shifted), "layers.1.blocks.1",
    ),
    "a shift before the padding": (
        "swin_36x44", replaced(swin.WindowAttention, "packed", shifted_before_padding), "layers.0.blocks.1",
    ),
    "a shift in the opposite direction": (
        "swin_64x64",
        replaced(window_attention.WindowAttention, "forward", shifted_backwards),
        "layers.0.blocks.1",
    ),
    "no mask": (
        "swin_64x64",
        replaced(window_attention, "shift_mask", lambda mask: lambda *where: np.zeros(1)),
        "layers.0.blocks.1",
    ),
    "queries and keys of the bias swapped": (
        "swin_64x64",
        replaced(swin, "relative_position_index", lambda index: lambda M, on: index(M, on).flip(0)),
        "layers.0.blocks.0",
    ),
    "patch merging in column order": (
        "swin_64x64", replaced(swin.PatchMerging, "forward", columns_first), "layers.0.downsample",
    ),
    "ConvNeXt's eps 1e-5": ("convnext_64x64", with_eps(nn.LayerNorm, 1e-5), "downsample_layers.0"),
    "LayerNorm before pooling": (
        "convnext_64x64", replaced(convnext.ConvNeXt, "forward_head", norm_before_pooling), "norm",
    ),
    "no layer scale": ("convnext_64x64", gammas_of_one, "stages.0.0"),
    "Swin V2's eps 1e-6": ("swinv2_64x64", with_eps(nn.LayerNorm, 1e-6), "patch_embed"),
    "LayerNorm before the branch": (
        "swinv2_64x64", replaced(swinv2.SwinTransformerBlock, "forward", norm_before_attention), "layers.0.blocks.0",
    ),
    "keys that are not normalized": (
        "swinv2_64x64", replaced(F, "normalize", without_normalized_keys), "layers.0.blocks.0",
    ),
    "linear offsets of the position bias": (
        "swinv2_64x64", replaced(swinv2, "log_spaced_offsets", linear_offsets), "layers.0.blocks.0",
    ),
    "offsets scaled to the window, not to that of the pre-training": (
        "swinv2_pretrained_windows", scaled_to_the_window, "layers.0.blocks.0",
    ),
    "windows as large as configured on smaller maps": (
        "swinv2_map_below_window", replaced(swinv2.WindowAttention, "window", lambda _: swin.WindowAttention.window),
        "layers.1.blocks.0",
    ),
    "GRN before GELU": ("convnextv2_64x64", replaced(convnextv2.Block, "mlp", grn_before_gelu), "stages.0.0"),
    "GRN's eps 1e-5": (
        "convnextv2_64x64",
        replaced(F, "global_response_norm", lambda grn: lambda x, weight, bias, eps: grn(x, weight, bias, 1e-5)),
        "stages.0.0",
    ),
    "odd padding at the top": ("hybrid_64x64", replaced(hybrid, "same_padding", odd_padding_at_the_top), "stem"),
    "GroupNorm's eps 1e-6": ("hybrid_64x64", with_eps(nn.GroupNorm, 1e-6), "stem"),
    "weight standardization with eps 1e-6": (
        "hybrid_64x64", replaced(F, "standardize_weight", lambda standardize: partial(standardize, eps=1e-6)), "stem",
    ),
    "weight standardization with unbiased variance": (
        "hybrid_64x64", replaced(F, "standardize_weight", unbiased), "stem",
    ),
    "a ReLU before the residual addition": (
        "hybrid_64x64", replaced(hybrid.Bottleneck, "forward", relu_before_the_addition), "stages.0.blocks.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_bug_is_located_in_its_layer(bug, monkeypatch):
    """Known bugs of implementations: the layer with the bug is the first out of tolerance."""
    name, change, layer = BUGS[bug]
    recorded = golden.load(name)
    model = recorded.create()
    change(monkeypatch, model)
    first = recorded.compare(model).out_of_tolerance()[0]
    assert first.name.removeprefix("patch_embed.backbone.") == layer
