"""The roadmap from ResNet-50 to ConvNeXt: costs, logits, gradients, training; the last step against ConvNeXt."""

from dataclasses import asdict, fields, replace
from itertools import combinations

import numpy as np
import pytest

import minigrad
import models
from minigrad import Tensor, nn, optim
from minigrad import functional as F
from minigrad.nn import init
from models.compare import formula
from models.convnext import ConvNeXt
from models.roadmap import STEPS, Design, RoadmapNet, designs
from models.summary import cost as summary

# Parameters with 1000 classes, counted on the authors' code, and 10⁹ multiply-accumulates at 224: the paper's table 10
# with one more digit (for BN -> LN and the last step the paper has 4.46 and 4.49, with more ops than convolutions).
COSTS = {
    "roadmap_00_resnet50": (25_557_032, 4.089),
    "roadmap_01_stage_ratio": (28_628_520, 4.526),
    "roadmap_02_patchify": (28_622_120, 4.418),
    "roadmap_03_depthwise": (15_722_600, 2.350),
    "roadmap_04_width": (33_760_936, 5.268),
    "roadmap_05_inverted": (25_851_400, 4.644),
    "roadmap_06_moved_up": (25_625_416, 4.065),
    "roadmap_07_kernel_5": (25_720_648, 4.097),
    "roadmap_08_kernel_7": (25_863_496, 4.146),
    "roadmap_09_kernel_9": (26_053_960, 4.210),
    "roadmap_10_kernel_11": (26_292_040, 4.291),
    "roadmap_11_gelu": (25_863_496, 4.146),
    "roadmap_12_fewer_activations": (25_863_496, 4.146),
    "roadmap_13_fewer_norms": (25_797_256, 4.146),
    "roadmap_14_layer_norm": (25_836_328, 4.146),
    "roadmap_15_final_norm": (25_837_864, 4.146),
    "roadmap_16_separate_downsampling": (28_580_968, 4.456),
}
# Logits of the small steps below, with formula weights, by PyTorch in float64 (tests/reference/test_roadmap.py).
LOGITS = {
    "resnet50": (-0.41972935012671, 0.78820970518554, -0.85572017524875),
    "stage_ratio": (0.51111517166553, 1.12532123870235, -1.04659536672461),
    "patchify": (0.13944112565036, 0.72908355355259, -1.58118127111293),
    "depthwise": (-0.54417257586157, 1.38357214837629, -0.57232682632420),
    "width": (0.44148879275428, -1.13505812038684, -0.29260513483167),
    "inverted": (-0.40992098739367, -0.80704789247157, 0.20042944214253),
    "moved_up": (0.25793339267741, -0.73426154888912, -0.02242760071842),
    "kernel_5": (0.12804096383874, -0.98426745075962, 0.27656688489679),
    "kernel_7": (0.00791610018364, -0.90363877551513, 0.38203615954710),
    "kernel_9": (-0.20603447256465, -1.23375988203505, 0.52525996270263),
    "kernel_11": (-0.42141576570951, -0.63920889201036, 0.45569232649451),
    "gelu": (-0.25368692873197, -0.38239315638157, 0.54397853883900),
    "fewer_activations": (0.19163778281615, 0.02698769724669, -0.91772921223351),
    "fewer_norms": (-0.31771052800303, -0.21962707621068, 0.26217941317867),
    "layer_norm": (-0.84538812749158, -1.15379191966064, 0.19436339122504),
    "final_norm": (-0.71746417195145, -0.97134566361496, 0.17509707703479),
    "separate_downsampling": (0.10510264696449, -1.03256022501550, 0.56523000815406),
}
LAST = "roadmap_16_separate_downsampling"
DESIGNS = dict(designs())
each_step = pytest.mark.parametrize("step", DESIGNS)


def count(model) -> int:
    return sum(p.data.size for p in model.parameters())


def empty(name: str, **overrides) -> RoadmapNet:
    with init.skip_init():  # allocates memory, writes none
        return models.create_model(name, **overrides)


def small(step: str, **overrides) -> RoadmapNet:
    """A step on images of 32 x 32, with a third of the step's blocks and a sixteenth of the channels."""
    design = DESIGNS[step]
    design = replace(design, depths=tuple(depth // 3 for depth in design.depths), width=design.width // 16)
    return RoadmapNet(**(asdict(design) | {"img_size": 32, "num_classes": 5, "stem_stride": 2} | overrides))


def images(count: int = 2, size: int = 32) -> Tensor:
    return Tensor(formula.stream("images", count, 3, size, size))


# The steps ------------------------------------------------------------------------------------------------------------


def test_names_are_in_the_order_of_the_steps():
    assert [n for n in models.list_models("roadmap_*") if not n.endswith("_cifar")] == list(COSTS)
    assert models.list_models("roadmap_*_cifar") == [name + "_cifar" for name in COSTS]
    assert [name[len("roadmap_00_") :] for name in COSTS] == [step.name for step in STEPS]


@pytest.mark.parametrize("name", COSTS)
def test_parameters_and_macs_of_each_step(name):
    model = empty(name)
    assert (count(model), round(summary.macs(model) / 1e9, 3)) == COSTS[name]


def test_each_step_changes_one_design_decision():
    assert empty("roadmap_00_resnet50").design == Design()
    for step in STEPS[1:]:
        assert len(step.change) == 1
    names = [next(iter(step.change)) for step in STEPS[1:]]
    assert list(dict.fromkeys(names)) == [f.name for f in fields(Design)][:-1]  # in this order; the last is a variant
    assert DESIGNS["gelu"] == replace(DESIGNS["kernel_7"], gelu=True)  # kernel sizes 9 and 11 are not kept


def test_a_norm_after_each_downsampling_convolution():
    assert count(empty(LAST, downsampling_norm=True)) == 28_583_656


def test_convnext_has_more_norms_and_layer_scale():
    tiny = models.convnext.SIZES["tiny"]
    dims, depths = tiny["dims"], tiny["depths"]
    stem_norm, downsampling_norms = 2 * dims[0], 2 * sum(dims[:3])
    layer_scale = sum(depth * dim for depth, dim in zip(depths, dims, strict=True))
    assert (stem_norm, downsampling_norms, layer_scale) == (192, 2 * (96 + 192 + 384), 6_624)
    assert count(empty(LAST)) + stem_norm + downsampling_norms + layer_scale == count(empty("convnext_tiny"))


def test_convnext_without_these_norms_equals_the_last_step():
    last = formula.fill(small("separate_downsampling"))
    dims = [6, 12, 24, 48]
    convnext = ConvNeXt(
        img_size=32, num_classes=5, depths=(1, 1, 3, 1), dims=dims, stem_size=2, layer_scale_init_value=1
    )
    convnext.to(dtype=np.float64)
    setattr(convnext.downsample_layers[0], "1", nn.Identity())
    for s in (1, 2, 3):
        setattr(convnext.downsample_layers[s], "0", nn.Identity())
    renamed = {"dwconv": "conv1", "norm": "bn1", "pwconv1": "conv2", "pwconv2": "conv3"}
    weights = last.state_dict()
    for name, parameter in convnext.named_parameters():
        match name.split("."):
            case ["downsample_layers", "0", "0", kind]:
                name_there = f"conv1.{kind}"
            case ["downsample_layers", s, "1", kind]:
                name_there = f"ds{s}.0.{kind}"
            case ["stages", _, _, "gamma"]:
                continue
            case ["stages", s, block, layer, kind]:
                name_there = f"layer{int(s) + 1}.{block}.{renamed[layer]}.{kind}"
            case [layer, kind]:
                name_there = f"{layer.replace('head', 'fc')}.{kind}"
        parameter.data[...] = weights.pop(name_there).data.reshape(parameter.shape)  # (O, C, 1, 1) -> (O, C)
    assert not weights
    np.testing.assert_allclose(last(images()).numpy(), convnext(images()).numpy(), rtol=1e-12)


# Every step -----------------------------------------------------------------------------------------------------------


@each_step
def test_gradients_agree_with_finite_differences(step):
    """The stem, each block and the head are checked along one direction in the space of their parameters."""
    model, x, h = formula.fill(small(step)), images(), 1e-8  # small: ReLU and max pooling have kinks
    probe = Tensor(formula.stream("loss", 2, 5))

    def loss() -> Tensor:
        return (model(x) * probe).sum()

    loss().backward()
    depths = model.layer_ids()
    for depth in range(max(depths.values()) + 1):
        parts = {name: p for name, p in model.named_parameters() if depths[name] == depth}
        values = {name: p.data.copy() for name, p in parts.items()}
        directions = {name: formula.stream("probe." + name, *p.shape) for name, p in parts.items()}

        def along(step: float, parts=parts, values=values, directions=directions) -> float:
            for name, p in parts.items():
                p.data[...] = values[name] + step * directions[name]
            with minigrad.no_grad():
                return loss().item()

        numeric = (along(h) - along(-h)) / (2 * h)
        along(0)
        analytic = sum(float((p.grad.data * directions[name]).sum()) for name, p in parts.items())
        assert analytic == pytest.approx(numeric, rel=1e-5, abs=1e-5), list(parts)


@each_step
def test_logits_equal_the_reference_implementation(step):
    logits = formula.fill(small(step))(images()).numpy()
    np.testing.assert_allclose(logits[0, :3], LOGITS[step], rtol=0, atol=1e-12)


def test_every_step_changes_the_logits():
    distances = [np.abs(np.subtract(a, b)).max() for a, b in combinations(LOGITS.values(), 2)]
    assert min(distances) > 0.01


@each_step
def test_training_overfits_one_batch(step):
    minigrad.manual_seed(0)
    model, x, y = small(step), minigrad.randn(5, 3, 32, 32), Tensor(np.arange(5))
    optimizer = optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(10):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.dtype == np.float32
    assert loss.item() < 0.2 and (model(x).argmax(1) == y).numpy().all()


@each_step
def test_depths_rise_from_the_stem_to_the_classifier(step):
    model = small(step)
    depths, blocks = model.layer_ids(), list(model.blocks_by_name())
    assert set(depths) == {name for name, _ in model.named_parameters()} and len(blocks) == sum(model.design.depths)
    for number, block in enumerate(blocks, 1):
        assert {depth for name, depth in depths.items() if name.startswith(block + ".")} == {number}
    assert {depth for name, depth in depths.items() if name.startswith(("conv1.", "bn1."))} == {0}
    assert {depth for name, depth in depths.items() if name.startswith(("norm.", "fc."))} == {len(blocks) + 1}
    downsampling = {depth for name, depth in depths.items() if name.startswith("ds1.")}
    assert downsampling == ({depths["layer2.0.conv1.weight"]} if model.design.separate_downsampling else set())


@each_step
def test_feature_maps_have_the_same_sizes_in_all_steps(step):
    _, maps = small(step, depths=(1, 1, 1, 1)).forward_intermediates(minigrad.randn(2, 3, 32, 32))
    assert [m.shape[2:] for m in maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    _, maps = small(step, depths=(1, 1, 1, 1), stem_stride=4).forward_intermediates(minigrad.randn(2, 3, 64, 32))
    assert [m.shape[2:] for m in maps] == [(16, 8), (8, 4), (4, 2), (2, 1)]


# Arguments ------------------------------------------------------------------------------------------------------------


def test_arguments_override_a_step():
    model = models.create_model("roadmap_08_kernel_7_cifar", kernel_size=13, width=8, num_classes=3, in_chans=1)
    assert model.layer1[0].conv1.weight.shape == (8, 1, 13, 13)
    assert model(minigrad.randn(2, 1, 32, 32)).shape == (2, 3)
    with pytest.raises(TypeError, match=r"has no argument kernel; it has .* kernel_size"):
        models.create_model("roadmap_08_kernel_7_cifar", kernel=13)


def test_reset_classifier_replaces_fc():
    model = small("layer_norm")
    features = model.forward_head(model.forward_features(images().float()), pre_logits=True)
    model.reset_classifier(3)
    assert model.head is model.fc and model(images().float()).shape == (2, 3)
    model.reset_classifier(0)
    np.testing.assert_array_equal(model(images().float()).numpy(), features.numpy())
    assert features.shape == (2, model.num_features) and not any(name.startswith("fc") for name in model.state_dict())


def test_drop_path_rises_linearly_and_acts_in_training_only():
    minigrad.manual_seed(0)
    model = formula.fill(small("layer_norm", drop_path_rate=0.5))
    np.testing.assert_allclose([b.drop_path.p for b in model.blocks_by_name().values()], np.linspace(0, 0.5, 6))
    assert not np.array_equal(model(images()).numpy(), model(images()).numpy())
    np.testing.assert_array_equal(model.eval()(images()).numpy(), formula.fill(small("layer_norm"))(images()).numpy())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"depths": (1, 1, 1)}, "depths must have four entries, each at least 1"),
        ({"depths": (1, 0, 1, 1)}, "depths must have four entries, each at least 1"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"stem_stride": 1}, "stem_stride must be even"),
        ({"stem_stride": 3}, "stem_stride must be even"),
        ({"stem_stride": (4, 4)}, "stem_stride must be an integer, at least 1, got .4, 4"),
        ({"kernel_size": (7, 7)}, "kernel_size must be an integer, at least 1, got .7, 7"),
        ({"width": 0}, "width must be an integer"),
        ({"in_chans": 0}, "in_chans must be an integer"),
        ({"num_classes": -1}, "num_classes must be an integer, at least 0"),
        ({"depths": (1, 1.5, 1, 1)}, "depths must be a sequence of integers"),
        ({"drop_path_rate": 2}, "drop_path_rate: a probability must be from 0 to 1"),
    ],
)
def test_invalid_arguments_raise(overrides, message):
    with pytest.raises(ValueError, match=message):
        small("width", **overrides)


def test_invalid_images_raise():
    with pytest.raises(ValueError, match=r"at least 16 x 16 .* got \(1, 3, 15, 40\)"):
        small("separate_downsampling")(minigrad.randn(1, 3, 15, 40))
    with pytest.raises(ValueError, match=r"needs images of shape \(B, 3, H, W\), got \(1, 1, 32, 32\)"):
        small("resnet50")(minigrad.randn(1, 1, 32, 32))
    assert small("resnet50")(minigrad.randn(2, 3, 7, 9)).shape == (2, 5)
