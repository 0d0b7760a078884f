"""Training of all families: gradient checkpointing, stochastic depth, dropout, and one batch that is overfitted."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest

import minigrad
import models
from minigrad import Tensor, nn, optim
from minigrad import functional as F
from minigrad.testing import graph
from models.compare import formula
from models.hybrid import Bottleneck
from tests.models.small import each_family, images, small


@each_family
def test_checkpointing_changes_no_loss_or_gradient(family):
    """Loss and gradients are equal bit for bit, with dropout and stochastic depth."""
    drops = {"drop_path_rate": 0.4} | ({} if "convnext" in family else {"drop_rate": 0.1, "attn_drop_rate": 0.1})

    def step(checkpointing: bool) -> list[np.ndarray]:
        minigrad.manual_seed(0)
        model = formula.fill(small(family, **drops))
        model.set_grad_checkpointing(checkpointing)
        loss = F.cross_entropy(model(images()), Tensor([1, 5]))
        loss.backward()
        assert minigrad.rand(1).shape == (1,)
        return [loss.numpy(), minigrad.rand(3).numpy(), *(p.grad.numpy() for p in model.parameters())]

    for plain, recomputed in zip(step(False), step(True), strict=True):
        np.testing.assert_array_equal(plain, recomputed)


def test_checkpointing_updates_running_statistics_once():
    x = minigrad.randn(4, 3, 16, 16)

    def buffers(checkpointing: bool) -> list[np.ndarray]:
        minigrad.manual_seed(0)
        model = models.create_model("roadmap_00_resnet50_cifar", img_size=16)
        model.set_grad_checkpointing(checkpointing)
        model(x).sum().backward()
        return [buffer.numpy() for _, buffer in model.named_buffers()]

    for plain, recomputed in zip(buffers(False), buffers(True), strict=True):
        np.testing.assert_array_equal(plain, recomputed)


def test_checkpointed_dropout_ignores_other_draws():
    """Another thread may draw from the shared generator between the start of a block and its dropout."""
    shared = minigrad.manual_seed(0)

    class Busy(nn.Module):
        def forward(self, x):
            shared.uniform((1,))
            return F.dropout(x, 0.5)

    layer, x = Busy(), Tensor(np.ones((8, 8)), requires_grad=True)
    layer.checkpointing = True
    y = layer(x)
    y.sum().backward()
    np.testing.assert_array_equal(y.numpy() > 0, x.grad.numpy() > 0)


def test_checkpointing_saves_memory():
    model, x = models.create_model("vit_nano_cifar", depth=8), minigrad.randn(16, 3, 32, 32)

    def peak() -> int:
        tracemalloc.start()
        model(x).sum().backward()
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    peak()  # allocates the gradients
    everything = peak()
    model.set_grad_checkpointing()
    assert peak() < everything / 3


@each_family
def test_drop_path_rates_rise_linearly_over_all_blocks(family):
    model = small(family, drop_path_rate=0.5)
    blocks = residual_blocks(model)
    assert len(blocks) == (4 if family in ("swin", "swinv2", "convnext", "convnextv2") else 2)
    for block, rate in zip(blocks, np.linspace(0, 0.5, len(blocks)), strict=True):
        np.testing.assert_allclose([m.p for m in block.modules() if isinstance(m, nn.DropPath)], [rate])


@each_family
def test_a_block_with_drop_path_rate_1_is_the_identity(family):
    model, seen = formula.fill(small(family, drop_path_rate=1.0)), []
    (*_, last) = model.blocks_by_name().values()
    last.register_forward_hook(lambda block, inputs, output: seen.append((*inputs, output)))
    model(images())
    (x, y) = seen[0]
    np.testing.assert_array_equal(y.numpy(), x.numpy())


@each_family
def test_drop_path_acts_in_training_only(family):
    minigrad.manual_seed(0)
    model = formula.fill(small(family, drop_path_rate=0.5)).train()
    assert not np.array_equal(model(images(8)).numpy(), model(images(8)).numpy())
    np.testing.assert_array_equal(model.eval()(images()).numpy(), formula.fill(small(family))(images()).numpy())


def residual_blocks(model):
    """All blocks but those of the hybrid's ResNet, whose residual connection ends with a ReLU."""
    return [block for block in model.blocks_by_name().values() if not isinstance(block, Bottleneck)]


@each_family
def test_a_residual_connection_is_one_op(family):
    model = small(family, drop_path_rate=0.5)
    ops, blocks = Counter(repr(node) for node in graph(model(images().float()))), residual_blocks(model)
    norm_follows = family in ("vit", "distilled", "hybrid", "swin")  # else layer scale, or the norm comes before
    connections = len(blocks) if family in ("convnext", "convnextv2") else 2 * len(blocks)
    with_norm = len(blocks) if norm_follows else 0
    assert ops["<ResidualLayerNorm>"] == with_norm and ops["<Residual>"] == connections - with_norm
    assert ops["<Dropout>"] == 0


@each_family
def test_forward_hooks_on_norms_see_the_values_of_the_forward(family):
    model, x = formula.fill(small(family, drop_path_rate=0.5)), images()

    def step() -> list[np.ndarray]:
        minigrad.manual_seed(0)
        model.zero_grad()
        logits = model.forward_head(model.forward_features(x))  # all tokens, with and without hooks
        loss = F.cross_entropy(logits, Tensor([1, 5]))
        loss.backward()
        return [loss.numpy(), *(p.grad.numpy() for p in model.parameters())]

    expected, seen = step(), []
    norms = [norm for block in residual_blocks(model) for norm in block.modules() if isinstance(norm, nn.LayerNorm)]
    removals = [
        norm.register_forward_hook(lambda norm, inputs, output: seen.append((norm, *inputs, output))) for norm in norms
    ]
    found = step()
    for remove in removals:
        remove()
    assert [norm for norm, *_ in seen] == norms
    assert len(norms) == len(residual_blocks(model)) * (1 if "convnext" in family else 2)
    for norm, z, y in seen:
        np.testing.assert_array_equal(y.numpy(), norm(z).numpy())
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def in_training(model):
    """The first block that has `attn`; by name, the block's input, attn's output, fc2's input, the MLP's output."""
    block = next(block for block in model.train().blocks_by_name().values() if hasattr(block, "attn"))
    seen = {}
    block.register_forward_hook(lambda m, inputs, y: seen.update(embedding=inputs[0].numpy()))
    block.attn.register_forward_hook(lambda m, inputs, y: seen.update(attention=y.numpy()))
    block.mlp.fc2.register_forward_hook(lambda m, inputs, y: seen.update(hidden=inputs[0].numpy()))
    block.mlp.register_forward_hook(lambda m, inputs, y: seen.update(mlp=y.numpy()))
    model(images())
    return block, seen


@pytest.mark.parametrize("family", ["vit", "dinov2", "hybrid", "swin", "swinv2"])
def test_drop_rate_acts_on_embedding_attention_and_mlp(family):
    _, seen = in_training(formula.fill(small(family, drop_rate=1.0)))
    assert {name: x.any() for name, x in seen.items()} == dict.fromkeys(
        ["embedding", "attention", "hidden", "mlp"], False
    )


@pytest.mark.parametrize("family", ["vit", "hybrid", "swin", "swinv2"])
def test_attn_drop_rate_acts_on_the_probabilities(family):
    block, seen = in_training(formula.fill(small(family, attn_drop_rate=1.0)))
    bias = np.broadcast_to(block.attn.proj.bias.numpy(), seen["attention"].shape)
    np.testing.assert_array_equal(seen["attention"], bias)
    assert seen["hidden"].any()


@each_family
def test_training_overfits_one_batch(family):
    minigrad.manual_seed(0)
    model, x, y = small(family), minigrad.randn(7, 3, 32, 32), Tensor(np.arange(7))
    optimizer = optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1 and (model(x).argmax(1) == y).numpy().all()
