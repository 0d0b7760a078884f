"""models.compare: traces, differences, tables and the command line, without torch."""

import sys

import numpy as np
import pytest

import models
from minigrad import Function, Tensor
from models.compare import formula, table
from models.compare.__main__ import main
from models.compare.differences import compare, relative
from models.compare.trace import outer_layers, to_rows, trace
from tests.models.small import FAMILIES, small


def images(model, B: int = 2) -> np.ndarray:
    return formula.stream("images", B, model.in_chans, *model.img_size)


class WrongBackward(Function):
    """y = x, with twice the correct gradient."""

    def forward(self, x):
        return x.copy()

    def backward(self, grad_output):
        return 2 * grad_output


def test_trace_has_all_outputs_and_gradients():
    model = formula.fill(small("swin"))
    found = trace(model, images(model))
    assert list(found.outputs)[:4] == ["patch_embed.proj", "patch_embed.norm", "patch_embed", "layers.0.blocks.0.norm1"]
    assert list(found.outputs)[-1] == "logits" and set(found.gradients) == {*found.outputs, "images"}
    np.testing.assert_array_equal(found.gradients["logits"], formula.stream("loss", 2, 7))
    assert set(found.parameters) == {name for name, _ in model.named_parameters()}
    assert model.training and not any(vars(module).get("_forward_hooks") for module in model.modules())


def test_to_rows_accepts_channels_first_and_last():
    image = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    rows = image.transpose(0, 2, 3, 1).reshape(40, 3)
    for x in (image, image.transpose(0, 2, 3, 1), rows.reshape(2, 20, 3), rows.reshape(4, 10, 3)):
        (found,) = to_rows(x, 3)
        np.testing.assert_array_equal(found, rows)
    assert len(to_rows(np.zeros((2, 4, 4, 4)), 4)) == 2 and not to_rows(image, 7)


def test_differences_are_relative_to_the_largest_value():
    np.testing.assert_allclose(relative("x", np.array([1.0, -4.5]), np.array([1.0, -4.0])), [0, 0.125])
    assert relative("x", np.array([1.0]), np.zeros(1)) == 1 and relative("x", np.ones(2), np.ones(1)) == np.inf


@pytest.mark.parametrize("family", FAMILIES)
def test_model_agrees_with_itself(family):
    model = formula.fill(small(family))
    comparison = compare(trace(model, images(model)), trace(model, images(model)), model)
    assert not comparison.out_of_tolerance() and "all" in table.verdict(comparison)
    rows = [line.split()[0] for line in table.table(comparison, model).splitlines() if line.startswith("  ")]
    assert set(model.blocks_by_name()) | {"logits", "images"} <= set(rows)
    assert "first out of tolerance" not in table.table(comparison, model)


def compare_changed(family: str, layer: str, change):
    """Compare a model with one changed layer with the unchanged model."""
    model = formula.fill(small(family))
    expected = trace(model, images(model))
    change(dict(model.named_modules())[layer])
    return compare(trace(model, images(model)), expected, model), model


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("vit", "blocks.1.norm2"),
        ("hybrid", "patch_embed.backbone.stages.1.blocks.0.downsample.norm"),
        ("swin", "layers.0.downsample.norm"),
        ("swin", "layers.1.blocks.0.norm1"),
        ("swinv2", "layers.0.downsample.norm"),
        ("convnext", "stages.1.1.norm"),
    ],
)
def test_first_wrong_layer_is_marked(family, layer):
    comparison, model = compare_changed(family, layer, lambda norm: setattr(norm, "eps", 1e-4))
    marked = [line for line in table.table(comparison, model).splitlines() if "first out of tolerance" in line]
    assert marked[0].split()[0] == layer and len(marked) == 2  # the second is a gradient
    assert table.verdict(comparison).endswith(f"the first in forward order is the output of {layer}")


def test_wrong_backward_with_correct_forward_is_found():
    def change(norm):
        norm.register_forward_hook(lambda module, inputs, output: Tensor.apply(WrongBackward, output))

    comparison, model = compare_changed("convnext", "stages.1.0.norm", change)
    assert all(row.within(1e-12) for row in comparison.outputs)
    assert table.verdict(comparison).endswith("the first in backward order is the gradient of stages.1.0.dwconv")
    line = next(line for line in table.table(comparison, model).splitlines() if "first out" in line)
    assert line.split()[0] == "stages.1.0.dwconv"


def test_wrong_parameter_gradient_is_found():
    comparison, _ = compare_changed(
        "vit", "blocks.1.mlp.fc1", lambda linear: setattr(linear.bias, "requires_grad", False)
    )
    assert table.verdict(comparison) == (
        f"1 of {sum(map(len, (comparison.outputs, comparison.gradients, comparison.parameters)))} arrays are out of "
        "tolerance, all of them gradients of parameters; the largest difference is in blocks.1.mlp.fc1.bias"
    )


def test_nan_is_out_of_tolerance():
    comparison, _ = compare_changed("vit", "blocks.0.mlp.fc2", lambda linear: linear.weight.data.fill(np.nan))
    assert comparison.out_of_tolerance()[0].name == "blocks.0.mlp.fc2"


def test_outer_layers_are_blocks_and_layers_outside_them():
    model = small("hybrid", layers=(1,), channels=(128,))
    stem, proj = "patch_embed.backbone.stem", "patch_embed.proj"
    names = [stem, f"{stem}.conv", "patch_embed.backbone.stages.0.blocks.0", "patch_embed", proj, "blocks.0", "norm"]
    assert outer_layers(model, names) == [stem, "patch_embed.backbone.stages.0.blocks.0", proj, "blocks.0", "norm"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_command_line_compares_with_goldens(dtype, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["--model", "hybrid_63x33", "--against", "golden", "--dtype", dtype]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"hybrid_63x33, 876,503 parameters, in {dtype}, against a golden of timm")
    assert "2 images of 3 x 63 x 33" in out and out.endswith("arrays agree\n")


def test_command_line_reports_a_wrong_model(capsys, monkeypatch):
    monkeypatch.setattr(models.vit.F, "gelu", models.vit.F.relu)
    assert main(["--model", "vit", "--against", "golden"]) == 1
    out = capsys.readouterr().out
    assert (
        out.count("<-- first out of tolerance") == 2 and "the first in forward order is the output of blocks.0" in out
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vit", "--against", "golden", "--batch", "2"], "do not apply to a golden"),
        (["--model", "vit_tiny_cifr", "--against", "golden"], "did you mean vit_tiny_cifar"),
        (["--model", "none", "--against", "golden"], "there are convnext_64x64, "),
        (["--model", "vit_nano_cifr", "--against", "timm"], "did you mean vit_nano_cifar"),
        (["--model", "vit_nano_cifar", "--against", "timm", "--img-size", "33"], "next size that fits is 36 x 36"),
        (["--model", "hybrid_nano_cifar", "--against", "torchvision"], "HybridVisionTransformer; try timm"),
        (["--model", "vit_nano_cifar", "--against", "timm"], "is not installed: pip install torch"),
    ],
)
def test_invalid_input_is_explained(arguments, message, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "32x", "32x0", "big", "1x2x3"])
def test_invalid_image_size_is_explained(size, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--model", "vit_nano_cifar", "--against", "timm", "--img-size", size])
    assert "must be a positive integer" in capsys.readouterr().err
