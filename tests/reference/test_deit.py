"""DeiT, DeiT III and DINOv2 in training mode, and their fine-tuning, against timm and transformers."""

import re

import numpy as np
import pytest

import models
from minigrad import Tensor
from minigrad.nn import init
from models.compare import formula, libraries
from models.compare.references import Reference
from tests.reference.conftest import skip_without

torch = pytest.importorskip("torch")

REDUCED = {"img_size": 28, "patch_size": 7, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7}
NAMES = ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224",
         "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_giant_patch14_reg4_dinov2"]  # fmt: skip


def pair(name):
    """timm's network and our model, with formula weights, and images."""
    skip_without("timm")
    reference = Reference("timm", name, **REDUCED)
    return reference, formula.fill(models.create_model(name, **REDUCED)), formula.stream("x.train", 3, 3, 28, 28)


def timms_filter():
    """timm's conversion of checkpoints, from their arrays and the network to a state dict."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    return checkpoint_filter_fn


def assert_close(found, expected, tolerance):
    assert abs(found - expected).max() <= tolerance * abs(expected).max()


@pytest.mark.parametrize(("name", "heads"), [*((name, 1) for name in NAMES), ("deit_tiny_distilled_patch16_224", 2)])
def test_training_mode(name, heads):
    """Logits and gradients in training mode; with distilled training, the loss has other weights for each head."""
    reference, model, images = pair(name)
    reference.network.train()
    if heads == 2:
        reference.network.set_distilled_training()
        model.set_distilled_training()
    theirs, ours = reference.network(torch.from_numpy(images)), model.train()(Tensor(images))
    theirs, ours = (theirs, ours) if heads == 2 else ((theirs,), (ours,))
    losses = [0, 0]
    for i, (y, x) in enumerate(zip(theirs, ours, strict=True)):
        assert_close(x.numpy(), y.detach().numpy(), 1e-12)
        weights = formula.stream(f"loss {i}", *x.shape)
        losses = losses[0] + (y * torch.from_numpy(weights)).sum(), losses[1] + (x * Tensor(weights)).sum()
    for loss in losses:
        loss.backward()
    for key, parameter in reference.network.named_parameters():
        assert_close(dict(model.named_parameters())[key].grad.numpy(), parameter.grad.numpy(), 1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_another_size(name):
    """`set_input_size` resamples the same positions as timm's (which computes them in float32)."""
    reference, model, _ = pair(name)
    reference.network.set_input_size((42, 21))
    model.set_input_size((42, 21))
    np.testing.assert_allclose(model.pos_embed.numpy(), reference.network.pos_embed.detach().numpy(), atol=1e-6)
    images = formula.stream("x.other", 2, 3, 42, 21)
    with torch.no_grad():
        expected = reference.network.eval()(torch.from_numpy(images)).numpy()
    assert_close(model.eval()(Tensor(images)).numpy(), expected, 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_another_grid_load_as_in_timm(name):
    """From 37 x 37 positions, as in DINOv2's files."""
    reference, model, _ = pair(name)
    file = models.create_model(name, **REDUCED | {"img_size": 37 * 7})
    entries = {key: tensor.numpy() for key, tensor in formula.fill(file).state_dict().items()}
    tensors = {key: torch.from_numpy(x) for key, x in entries.items()}
    expected = timms_filter()(tensors, reference.network)["pos_embed"]
    assert models.load_weights(model, entries, resize=True).resized == ["pos_embed"]
    np.testing.assert_allclose(model.pos_embed.numpy(), expected.numpy(), atol=1e-6)


def test_authors_files_with_registers_load_as_in_timm():
    """The class token has a position in the authors' form, but not in timm's."""
    reference, model, images = pair("vit_giant_patch14_reg4_dinov2")
    entries = {key: parameter.detach().clone() for key, parameter in reference.network.named_parameters()}
    position = torch.from_numpy(formula.stream("position", 1, 1, 24))
    entries["pos_embed"] = torch.cat([position, entries["pos_embed"]], 1)
    entries["register_tokens"], entries["mask_token"] = entries.pop("reg_token"), torch.zeros(1, 24)
    entries = {key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): x for key, x in entries.items()}
    models.load_weights(model, entries)
    reference.network.load_state_dict(timms_filter()(entries, reference.network))
    with torch.no_grad():
        expected = reference.network(torch.from_numpy(images)).numpy()
    assert_close(model.eval()(Tensor(images)).numpy(), expected, 1e-12)


def test_gradients_of_transformers_with_registers():
    """The gradient of the position of the class token is the gradient of the class token."""
    skip_without("transformers")
    transformers = libraries.load("transformers")
    config = transformers.Dinov2WithRegistersConfig(
        image_size=28, patch_size=7, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=4,
        num_register_tokens=4, attn_implementation="sdpa",
    )  # fmt: skip
    network = transformers.Dinov2WithRegistersModel(config).double().eval()
    model = models.create_model("vit_small_patch14_reg4_dinov2", **REDUCED | {"num_classes": 0}).to(dtype=np.float64)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            parameter.copy_(torch.from_numpy(formula.weight(key, *parameter.shape)))
    models.load_weights(model, network.state_dict())
    images = formula.stream("x.train", 3, 3, 28, 28)
    theirs, ours = network(torch.from_numpy(images)).pooler_output, model(Tensor(images))
    assert_close(ours.numpy(), theirs.detach().numpy(), 1e-12)
    weights = formula.stream("loss", *ours.shape)
    (theirs * torch.from_numpy(weights)).sum().backward()
    (ours * Tensor(weights)).sum().backward()
    grads = {key: parameter.grad.numpy() for key, parameter in network.named_parameters() if parameter.grad is not None}
    positions = grads.pop("embeddings.position_embeddings")
    np.testing.assert_array_equal(positions[:, :1], grads["embeddings.cls_token"])
    found = models.weights.layouts.to_canonical(grads | {"embeddings.position_embeddings": positions[:, 1:]}, model)
    assert set(found) == {key for key, _ in model.named_parameters()}
    for key, parameter in model.named_parameters():
        assert_close(parameter.grad.numpy(), found[key], 1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_without_weight_decay(name):
    """timm's set names absent tokens, too."""
    reference, model, _ = pair(name)
    own = {key for key, _ in model.named_parameters()}
    assert model.no_weight_decay() & own == reference.network.no_weight_decay() & own


@pytest.mark.parametrize("name", [name for name in models.list_models() if re.search("deit|dinov2|patch8_224$", name)])
def test_named_models_are_timms(name):
    """Names and shapes of all arrays, the number of classes and the image size."""
    skip_without("timm")
    with torch.device("meta"), init.meta_init():
        theirs, ours = libraries.load("timm").create_model(name, pretrained=False), models.create_model(name)
    assert (ours.num_classes, ours.img_size) == (theirs.num_classes, theirs.patch_embed.img_size)
    shapes = {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == shapes
