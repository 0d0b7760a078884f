"""All models against torchvision, timm and transformers: activations and gradients of every layer."""

from functools import cache

import numpy as np
import pytest

import models
from minigrad.nn import init
from models.compare import formula, libraries
from models.compare.__main__ import main
from models.compare.differences import compare
from models.compare.record import CASES
from models.compare.references import Reference
from models.compare.trace import Trace, is_submodule, trace
from models.model import ImageModel
from tests.reference.conftest import skip_without

torch = pytest.importorskip("torch")

# The libraries that can build each case. Only torchvision has all sizes of Swin, only timm the hybrid.
ALL = ("torchvision", "timm", "transformers")
SUPPORTED = {
    "vit": ALL,
    "vit_pre_logits": ("torchvision",),
    "vit_avg": ("timm",),
    "vit_oblong": ("timm", "transformers"),
    "deit_distilled": ("timm", "transformers"),
    "deit3": ("timm",),
    "deit3_avg": ("timm",),
    "dinov2": ("timm", "transformers"),
    "dinov2_registers": ("timm",),
    "dinov2_registers_avg": ("timm",),
    "dinov2_swiglu": ("timm", "transformers"),
    "hybrid_64x64": ("timm",),
    "hybrid_50x70": ("timm",),
    "hybrid_63x33": ("timm",),
    "hybrid_stem_2": ("timm",),
    "convnext_64x64": ALL,
    "convnext_70x45": ALL,
    "convnext_stem_2": ALL,
    "convnext_overlapping_stem": ("torchvision", "timm"),
    "convnextv2_64x64": ("timm", "transformers"),
    "convnextv2_70x45": ("timm", "transformers"),
    "swin_64x64": ALL,
    "swin_map_is_window": ALL,
    "swin_36x44": ("torchvision", "transformers"),
    "swin_40x40": ("torchvision", "transformers"),
    "swin_28x28": ("torchvision", "transformers"),
    "swin_30x50": ("torchvision",),
    "swin_34x54": ("torchvision", "transformers"),
    "swin_map_below_window": ("torchvision",),
    "swin_24x24_window_7": ("torchvision",),
    "swinv2_64x64": ALL,
    "swinv2_32x64": ("timm",),
    "swinv2_map_below_window": ("timm", "transformers"),
    "swinv2_pretrained_windows": ("timm", "transformers"),
    "swinv2_40x52": ("torchvision", "transformers"),
}
# Each with a different library than the one that recorded its golden.
LARGER_MODELS = [
    ("vit_tiny_cifar", "transformers"), ("swin_tiny_cifar", "timm"), ("convnext_atto_cifar", "timm"),
    ("swinv2_tiny_cifar", "torchvision"), ("convnextv2_atto_cifar", "transformers"),
]  # fmt: skip
PAIRS = [(name, library) for name, supported in SUPPORTED.items() for library in supported]


@cache
def reference_trace(name: str, library: str, scale: float = 1.0) -> tuple[Reference, Trace]:
    """The model of a library and its trace for the images of a case times `scale`, in float64."""
    skip_without(library)
    case = CASES[name]
    reference = Reference(library, case.model, **case.overrides)
    return reference, reference.trace(scale * formula.stream(case.stream, *case.shape))


def minigrad_model(name: str) -> tuple[ImageModel, np.ndarray]:
    """The model of a case and its images."""
    case = CASES[name]
    with init.skip_init():
        model = formula.fill(models.create_model(case.model, **case.overrides))
    return model, formula.stream(case.stream, *case.shape)


@pytest.mark.parametrize(("name", "library"), PAIRS + LARGER_MODELS)
def test_activations_and_gradients(name, library):
    (_, expected), (model, images) = reference_trace(name, library), minigrad_model(name)
    comparison = compare(trace(model, images), expected, model)
    assert comparison.tolerances == (1e-12, 1e-11)
    assert not comparison.out_of_tolerance()

    blocks, rows = set(model.blocks_by_name()), {row.name for row in comparison.outputs}
    assert blocks | {"fc_norm" if name.endswith("_avg") else "norm", "logits"} <= rows
    assert {row.name for row in comparison.gradients} == rows | {"images"}
    assert {row.name for row in comparison.parameters} == {parameter for parameter, _ in model.named_parameters()}
    inside = [row for row in rows if any(is_submodule(row, block) for block in blocks)]
    assert len(inside) >= 4 * len(blocks)  # the layers inside blocks


@pytest.mark.parametrize(("name", "library"), PAIRS)
def test_activations_and_gradients_in_float32(name, library):
    """If rounding flips the sign of a ReLU input near 0, gradients differ: then the hybrid tries other images."""
    model, images = minigrad_model(name)
    model.to("float32")
    for scale in np.arange(1.0, 0.2, -0.1) if name.startswith("hybrid") else (1.0,):
        comparison = compare(trace(model, scale * images), reference_trace(name, library, scale)[1], model)
        value, gradient = comparison.tolerances
        assert (value, gradient) == ((2e-5, 1e-4) if name.startswith("hybrid") else (1e-5, 5e-5))
        assert all(row.within(value) for row in comparison.outputs)
        if not comparison.out_of_tolerance():
            return
    assert not comparison.out_of_tolerance()


@pytest.mark.parametrize(
    ("name", "library"), [(name, library) for name in SUPPORTED for library in ALL if library not in SUPPORTED[name]]
)
def test_models_that_a_library_lacks_are_refused(name, library):
    skip_without(library)
    with pytest.raises(libraries.UnsupportedError, match=rf"{library} (has no \w+; try |cannot build this model: )"):
        libraries.build(library, CASES[name].model, **CASES[name].overrides)


@pytest.mark.parametrize(
    ("library", "model", "overrides", "reason"),
    [
        ("torchvision", "vit_nano_cifar", {"in_chans": 1}, "3 channels"),
        ("torchvision", "swin_nano_cifar", {"qkv_bias": False}, "qkv with a bias"),
        ("timm", "convnext_atto_cifar", {"depths": (1, 1), "dims": (8, 16)}, "four stages"),
        ("transformers", "convnext_atto_cifar", {"kernel_size": 5}, "7 x 7 kernels"),
        ("transformers", "swin_nano_cifar", {"window_size": (2, 4)}, "square windows"),
        ("torchvision", "vit_nano_cifar", {"patch_size": (8, 4)}, "square patches"),
        ("transformers", "vit_small_patch14_dinov2", {"num_classes": 7}, "models without a head"),
        ("transformers", "vit_small_patch14_reg4_dinov2", {}, "no registers"),
        ("transformers", "vit_small_patch14_dinov2", {"img_size": (28, 42)}, "square images"),
        ("torchvision", "swinv2_nano_cifar", {"pretrained_window_sizes": (8, 8, 4)}, "offsets scaled to the window"),
        ("timm", "convnextv2_atto_cifar", {"layer_scale_init_value": 1e-6}, "without layer scale"),
        ("transformers", "convnextv2_atto_cifar", {"layer_scale_init_value": 1e-6}, "without layer scale"),
    ],
)
def test_refusals_name_the_reason(library, model, overrides, reason):
    skip_without(library)
    with pytest.raises(libraries.UnsupportedError, match=reason):
        libraries.build(library, model, **overrides)


@pytest.mark.parametrize(
    ("library", "model", "overrides"),
    [
        ("timm", "swin_nano_cifar", {"qkv_bias": False, "in_chans": 1}),
        ("timm", "convnext_atto_cifar", {"kernel_size": 5, "in_chans": 4}),
        ("timm", "vit_tiny_r_s16_p8_224", {"img_size": 64, "depth": 1, "in_chans": 1}),
        ("transformers", "vit_nano_cifar", {"qkv_bias": False, "in_chans": 1}),
        ("torchvision", "convnext_atto_cifar", {"depths": (1, 1), "dims": (8, 16)}),
        ("timm", "vit_nano_cifar", {"img_size": (48, 32), "patch_size": (16, 8), "depth": 2}),
        ("transformers", "vit_nano_cifar", {"img_size": (48, 32), "patch_size": (16, 8), "depth": 2}),
        ("timm", "vit_tiny_r_s16_p8_224", {"img_size": 64, "patch_size": (4, 8), "depth": 1}),
        ("torchvision", "deit_tiny_patch16_224", {"img_size": 32, "depth": 2}),
        ("timm", "deit_tiny_patch16_224", {"img_size": 32, "depth": 2}),
        ("transformers", "deit_tiny_patch16_224", {"img_size": 32, "depth": 2}),
        ("timm", "vit_small_patch8_224", {"img_size": 32, "depth": 2}),
        ("timm", "deit_base_distilled_patch16_384", {"img_size": 32, "depth": 1, "num_classes": 0, "in_chans": 1}),
        ("timm", "deit3_huge_patch14_224", {"img_size": 28, "depth": 1, "embed_dim": 48, "no_embed_class": False}),
        ("timm", "vit_giant_patch14_reg4_dinov2", {"img_size": 28, "depth": 2, "embed_dim": 48, "num_heads": 3}),
        ("timm", "swin_nano_cifar", {"window_size": (2, 4)}),
        ("timm", "swin_nano_cifar", {"window_size": (8, 2), "patch_size": (1, 2)}),
        ("torchvision", "swin_nano_cifar", {"window_size": (3, 5), "patch_size": (4, 3), "img_size": (30, 50)}),
        ("torchvision", "swin_nano_cifar", {"window_size": (2, 9)}),
        ("timm", "swinv2_nano_cifar", {"window_size": (2, 16), "patch_size": (1, 2), "in_chans": 1}),
        ("torchvision", "swinv2_nano_cifar", {"window_size": (2, 4), "img_size": (30, 50)}),
        ("transformers", "swinv2_nano_cifar", {"qkv_bias": False, "in_chans": 1, "mlp_ratio": 2.0}),
        ("timm", "convnextv2_atto_cifar", {"kernel_size": 5, "in_chans": 4}),
    ],
)
def test_models_with_other_arguments(library, model, overrides):
    skip_without(library)
    reference = Reference(library, model, **overrides)
    ours = formula.fill(models.create_model(model, **overrides))
    images = formula.stream("images", 2, ours.in_chans, *ours.img_size)
    assert not compare(trace(ours, images), reference.trace(images), ours).out_of_tolerance()


@pytest.mark.parametrize(
    ("name", "library", "layer"),
    [
        ("vit", "transformers", "blocks.1.norm2"),
        ("swin_36x44", "torchvision", "layers.1.blocks.0.norm1"),
        ("convnext_64x64", "timm", "stages.2.1.norm"),
        ("hybrid_64x64", "timm", "patch_embed.backbone.stages.1.blocks.0.norm1"),
        ("swinv2_64x64", "timm", "layers.1.blocks.0.norm1"),
    ],
)
def test_a_wrong_layer_is_the_first_out_of_tolerance(name, library, layer):
    (_, expected), (model, images) = reference_trace(name, library), minigrad_model(name)
    dict(model.named_modules())[layer].eps *= 2
    assert compare(trace(model, images), expected, model).out_of_tolerance()[0].name == layer


def test_command_line_reports_agreement(capsys):
    skip_without("torchvision")
    arguments = ["--model", "swin_nano_cifar", "--against", "torchvision", "--img-size", "33x40", "--batch", "2"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "against torchvision" in out and "2 images of 3 x 33 x 40" in out and out.endswith("arrays agree\n")


def test_torchvision_modules_are_mapped_to_minigrad_names():
    reference, _ = reference_trace("swin_36x44", "torchvision")
    pairs = reference.corresponding_modules()
    assert pairs["features.1.0"] == "layers.0.blocks.0" and pairs["features.2.norm"] == "layers.0.downsample.norm"
    assert pairs["features.3.1.mlp.3"] == "layers.1.blocks.1.mlp.fc2" and pairs["features.0"] == "patch_embed"
    np.testing.assert_array_equal(
        reference.network.head.weight.detach().numpy(), formula.weight("head.weight", 7, reference.model.num_features)
    )
