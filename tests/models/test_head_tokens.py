"""ViT and the hybrid: the last block computes only the tokens that the head reads, with the logits and gradients of
`forward_head(forward_features(x))`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor, nn, no_grad
from minigrad import functional as F
from minigrad.backend.fast_paths import FAST_PATHS
from models.compare import formula
from models.model import ImageModel
from models.vit import VisionTransformer
from tests.models.small import images, small

TOKENS = 17  # of both models
each_vit = pytest.mark.parametrize("family", ["vit", "hybrid"])


def outcome(model, forward, x):
    """The logits, and the gradients of all parameters and of x."""
    minigrad.manual_seed(0)
    x = Tensor(x.data, requires_grad=True)
    model.zero_grad()
    y = forward(model, x)
    (y * Tensor(formula.stream("y", *y.shape).astype(y.dtype))).sum().backward()
    return {"y": y.numpy(), "x": x.grad.numpy(), **{name: p.grad.numpy() for name, p in model.named_parameters()}}


def check_equal(model, x, tolerance=1e-12):
    """Relative to the largest element, or for the key bias, whose gradient is 0, of all gradients of biases."""
    expected, found = outcome(model, ImageModel.forward, x), outcome(model, type(model).__call__, x)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        difference = abs(found[name] - value).max()
        assert difference <= tolerance * max(abs(value).max(), 1e-3), f"{name}: {difference}"


def last_tokens(model, x):
    """The number of tokens in the MLP of the last block, without a hook."""
    lengths, gelu = [], F.gelu
    with pytest.MonkeyPatch.context() as patch, no_grad():
        patch.setattr(F, "gelu", lambda y: (lengths.append(y.shape[1]), gelu(y))[1])
        model(x)
    return lengths[-1]


@each_vit
@pytest.mark.parametrize(
    "overrides",
    [
        {}, {"depth": 1}, {"num_heads": 1}, {"qkv_bias": False}, {"representation_size": 20}, {"num_classes": 0},
        {"drop_path_rate": 0.5}, {"depth": 0}, {"drop_rate": 0.5}, {"attn_drop_rate": 0.5}, {"global_pool": "avg"},
    ],
    ids=str,
)  # fmt: skip
def test_logits_and_gradients_of_the_reference(family, overrides):
    check_equal(formula.fill(small(family, **overrides)), images(3))


@pytest.mark.parametrize(("family", "read"), [("distilled", 2), ("deit3", 1), ("dinov2", 1), ("vit", 1), ("hybrid", 1)])
def test_wider_families_compute_the_tokens_that_the_heads_read(family, read):
    model = formula.fill(small(family))
    assert model.head_tokens() == read
    check_equal(model, images(2))
    lengths = []
    with pytest.MonkeyPatch.context() as patch, no_grad():
        last = type(model.blocks[-1].mlp)
        forward = last.forward
        patch.setattr(last, "forward", lambda mlp, y: (lengths.append(y.shape[1]), forward(mlp, y))[1])
        model.eval()(images())
    assert lengths[0] > read and lengths[-1] == (read if FAST_PATHS else lengths[0])


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float16, 2e-2)])
def test_logits_and_gradients_in_other_dtypes(dtype, tolerance):
    model, x = formula.fill(small("vit")), images()
    check_equal(model.to(dtype=dtype), Tensor(x.data.astype(dtype)), tolerance)


@given(
    batch=st.integers(1, 3), rows=st.integers(1, 4), columns=st.integers(1, 4), heads=st.integers(1, 3),
    width=st.integers(1, 5), depth=st.integers(1, 3),
)  # fmt: skip
@settings(deadline=None)
def test_any_size(batch, rows, columns, heads, width, depth):
    sizes = {"patch_size": 4, "embed_dim": heads * width, "num_heads": heads, "depth": depth, "num_classes": 3}
    model = formula.fill(VisionTransformer(img_size=(4 * rows, 4 * columns), **sizes))
    check_equal(model, Tensor(formula.stream("x", batch, 3, 4 * rows, 4 * columns)), 1e-9)


@each_vit
def test_last_block_computes_only_the_class_token(family):
    model = formula.fill(small(family, drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.1))
    assert last_tokens(model.eval(), images()) == (1 if FAST_PATHS else TOKENS)
    with minigrad.without_fast_paths():
        assert last_tokens(model, images()) == TOKENS
    assert last_tokens(model.train(), images()) == TOKENS  # dropout masks would have other shapes
    assert model.forward_features(images()).shape[1] == TOKENS


@each_vit
@pytest.mark.parametrize("name", ["blocks.1", "blocks.1.attn", "blocks.1.mlp.fc2", "blocks.1.drop_path", "norm"])
def test_hooks_see_all_tokens(family, name):
    model, shapes = formula.fill(small(family)), []
    module = dict(model.named_modules())[name]
    before = last_tokens(model, images())
    for register in (
        module.register_forward_hook, module.register_forward_pre_hook, module.register_full_backward_hook,
    ):  # fmt: skip
        handle = register(lambda module, *values: shapes.append(values))
        assert last_tokens(model, images()) == TOKENS
        handle.remove()
        assert last_tokens(model, images()) == before
    assert shapes


def per_token_replaced(model):
    class Other(nn.Linear):
        pass

    model.blocks[-1].mlp.fc2 = Other(96, 24)


def checkpointed(model):
    model.set_grad_checkpointing()


def another_forward_features(model):
    model.forward_features = lambda x: VisionTransformer.forward_features(model, x)


def another_forward(model):
    block = model.blocks[-1]
    block.forward = lambda x: type(block).forward(block, x)


@pytest.mark.parametrize("change", [per_token_replaced, checkpointed, another_forward_features, another_forward])
def test_other_modules_compute_all_tokens(change):
    model = formula.fill(small("vit"))
    change(model)
    assert last_tokens(model, images()) == TOKENS
    check_equal(model, images())


class ReadsAll(VisionTransformer):
    def forward_head(self, x, pre_logits=False):
        return self.head(x.mean(1))


class ReadsTwo(VisionTransformer):
    def head_tokens(self):
        return 2

    def forward_head(self, x, pre_logits=False):
        return self.head(x[:, 0]) + self.head(x[:, 1])


@pytest.mark.parametrize(("cls", "tokens"), [(ReadsAll, 5), (ReadsTwo, 2)])
def test_a_subclass_says_how_many_tokens_its_head_reads(cls, tokens):
    model = formula.fill(cls(img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=3))
    x = images(size=16)
    assert last_tokens(model, x) == (tokens if FAST_PATHS else 5)
    check_equal(model, x)


def test_blocks_that_share_their_weights():
    model = formula.fill(small("vit"))
    model.blocks[0] = model.blocks[1]
    check_equal(model, images())
