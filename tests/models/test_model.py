"""All families: gradients, intermediate outputs, attention maps, fine-tuning, arguments, dtypes."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import minigrad
import models
from minigrad import Tensor, nn, optim
from minigrad import functional as F
from models.compare import formula
from models.model import param_groups
from tests.models.small import each_family, images, small


@each_family
def test_gradients_agree_with_finite_differences(family):
    model, x, h = formula.fill(small(family)), images().data, 1e-7  # small: ReLU and max pooling have kinks
    probe = formula.stream("loss", 2, 7)

    def loss() -> Tensor:
        return (model(Tensor(x)) * Tensor(probe)).sum()

    loss().backward()
    for name, parameter in model.named_parameters():
        direction, value = formula.stream("probe." + name, *parameter.shape), parameter.data.copy()
        with minigrad.no_grad():
            parameter.data[...] = value + h * direction
            above = loss().item()
            parameter.data[...] = value - h * direction
            below = loss().item()
        parameter.data[...] = value
        analytic = float((parameter.grad.data * direction).sum())
        assert analytic == pytest.approx((above - below) / (2 * h), rel=1e-5, abs=1e-6), name


# Intermediate outputs -------------------------------------------------------------------------------------------------


@each_family
def test_intermediates_are_feature_maps(family):
    model = formula.fill(small(family))
    blocks = model.blocks_by_name()
    features, maps = model.forward_intermediates(images())
    np.testing.assert_array_equal(features.numpy(), model.forward_features(images()).numpy())
    assert len(maps) == len(blocks) and all(m.ndim == 4 for m in maps)
    _, last = model.forward_intermediates(images(), [-1])
    np.testing.assert_array_equal(last[0].numpy(), maps[-1].numpy())
    _, some = model.forward_intermediates(images(), [-1, 0])
    assert [m.shape for m in some] == [maps[0].shape, maps[-1].shape]
    with pytest.raises(IndexError, match=f"there are {len(blocks)} blocks"):
        model.forward_intermediates(images(), [len(blocks)])
    assert not any("_forward_hooks" in vars(m) and m._forward_hooks for m in model.modules())


def test_indices_may_be_an_integer_or_any_iterable():
    model = formula.fill(small("swin"))
    _, every = model.forward_intermediates(images())
    for indices, expected in [(2, [2, 3]), (0, []), (iter([3, 0, 3]), [0, 3]), ((-4,), [0])]:
        _, some = model.forward_intermediates(images(), indices)
        assert len(some) == len(expected)
        for found, i in zip(some, expected, strict=True):
            np.testing.assert_array_equal(found.numpy(), every[i].numpy())


def test_a_negative_number_of_last_blocks_is_refused():
    """-1 is not the last block: without the error there would be no outputs."""
    model = formula.fill(small("swin"))
    for method in (model.forward_intermediates, model.attention_maps):
        with pytest.raises(ValueError, match=r"a number of last blocks, at least 0, got -1; one block is \[-1\]"):
            method(images(), -1)


def test_threads_get_their_own_intermediates():
    model = formula.fill(small("vit"))
    batches = [Tensor(formula.stream(f"images {i}", 2, 3, 32, 32)) for i in range(4)]
    alone = [model.forward_intermediates(x)[1][-1].numpy() for x in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = list(pool.map(model.forward_intermediates, batches))
            for (_, maps), expected in zip(together, alone, strict=True):
                assert len(maps) == 2
                np.testing.assert_array_equal(maps[-1].numpy(), expected)


def test_the_norm_of_the_last_intermediate_is_the_features():
    x = images()
    swin = formula.fill(small("swin"))
    features, maps = swin.forward_intermediates(x, [-1])
    np.testing.assert_array_equal(swin.norm(maps[0].permute(0, 2, 3, 1)).numpy(), features.numpy())
    vit = formula.fill(small("vit"))
    features, maps = vit.forward_intermediates(x, [-1])
    tokens = maps[0].flatten(2).transpose(1, 2)
    np.testing.assert_allclose(vit.norm(tokens).numpy(), features.numpy()[:, 1:], rtol=1e-12)


@each_family
def test_forms_of_intermediates(family):
    model, x = formula.fill(small(family)), images()
    _, maps = model.forward_intermediates(x)
    alone = model.forward_intermediates(x, intermediates_only=True)
    tokens = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
    for y, same, rows in zip(maps, alone, tokens, strict=True):
        B, C, H, W = y.shape
        np.testing.assert_array_equal(same.numpy(), y.numpy())
        np.testing.assert_array_equal(rows.numpy(), y.numpy().reshape(B, C, H * W).transpose(0, 2, 1))
    with pytest.raises(ValueError, match='"NCHW" or "NLC", got \'NHWC\''):
        model.forward_intermediates(x, output_fmt="NHWC")
    with pytest.raises(ValueError, match="needs intermediates_only"):
        model.forward_intermediates(x, stop_early=True)


@each_family
def test_stopping_early_runs_no_further_block(family):
    model, x = formula.fill(small(family)), images()
    ran = []
    for name, block in model.blocks_by_name().items():
        block.register_forward_hook(lambda block, inputs, output, name=name: ran.append(name))
    found = model.forward_intermediates(x, [1, 0], stop_early=True, intermediates_only=True)
    assert ran == list(model.blocks_by_name())[:2] and len(found) == 2
    for y, expected in zip(found, model.forward_intermediates(x, [0, 1])[1], strict=True):
        np.testing.assert_array_equal(y.numpy(), expected.numpy())
    ran.clear()
    assert model.forward_intermediates(x, [], stop_early=True, intermediates_only=True) == [] and not ran


def test_prefix_tokens_and_norm_of_intermediates():
    model, small_swin, x = formula.fill(small("vit")), formula.fill(small("swin")), images()
    features, [(y, prefix)] = model.forward_intermediates(x, [-1], return_prefix_tokens=True, norm=True)
    np.testing.assert_array_equal(prefix.numpy(), features.numpy()[:, :1])
    np.testing.assert_array_equal(y.flatten(2).transpose(1, 2).numpy(), features.numpy()[:, 1:])
    features, [early, y] = small_swin.forward_intermediates(x, [0, -1], norm=True)
    np.testing.assert_array_equal(y.permute(0, 2, 3, 1).numpy(), features.numpy())
    np.testing.assert_array_equal(early.numpy(), small_swin.forward_intermediates(x, [0])[1][0].numpy())
    with pytest.raises(ValueError, match="SwinTransformer has no prefix tokens"):
        small_swin.forward_intermediates(x, return_prefix_tokens=True)


@pytest.mark.parametrize(
    ("name", "channels", "reduction"),
    [
        ("vit_nano_cifar", [64] * 3, [4] * 3),
        ("hybrid_nano_cifar", [96] * 3, [4] * 3),
        ("swin_nano_cifar", [32, 64, 128], [2, 4, 8]),
        ("convnext_atto_cifar", [40, 80, 160, 320], [2, 4, 8, 16]),
        ("roadmap_00_resnet50", [256, 512, 1024, 2048], [4, 8, 16, 32]),
    ],
)
def test_features_only(name, channels, reduction):
    net = models.create_model(name, features_only=True, **({"img_size": 64} if name.startswith("roadmap") else {}))
    assert net.feature_info.channels() == channels and net.feature_info.reduction() == reduction
    size = net.model.img_size[0]
    maps = net(minigrad.randn(1, 3, size, size))
    assert [y.shape for y in maps] == [(1, C, size // r, size // r) for C, r in zip(channels, reduction, strict=True)]
    assert not any(key.startswith("model.head") for key in net.state_dict())
    chosen = models.create_model(name, features_only=True, out_indices=[-1, 0], img_size=size)
    assert len(chosen(minigrad.randn(1, 3, size, size))) == 2
    assert len(models.create_model(name, features_only=True, out_indices=2).feature_info.channels()) == 2
    with pytest.raises(IndexError, match="out_indices: there are"):
        models.create_model(name, features_only=True, out_indices=[9])


@pytest.mark.parametrize(
    ("name", "options", "reduction"),
    [
        ("swin_nano_cifar", {"img_size": 50, "patch_size": (4, 2)}, [4, 8, 16]),  # maps of 13, 7 and 4 rows
        ("convnext_atto", {"img_size": 50}, [4, 8, 16, 32]),  # of 12, 6, 3 and 1 rows
        ("hybrid_nano_cifar", {"img_size": 30, "patch_size": 2}, [8] * 3),  # of 4 rows
        ("roadmap_00_resnet50_cifar", {"img_size": 50}, [2, 4, 8, 16]),
    ],
)
def test_reduction_does_not_depend_on_the_image(name, options, reduction):
    """A stride that does not divide the image gives a map that is padded or cropped; its stride is the same."""
    assert models.create_model(name, features_only=True, **options).feature_info.reduction() == reduction


@pytest.mark.parametrize("family", ["vit", "distilled", "dinov2", "hybrid", "swin", "swinv2"])
def test_attention_maps_give_the_output_of_attention(family):
    """With attention map A (in Swin, of the whole image), proj(A v) is the output of the block's attention."""
    model, x = formula.fill(small(family)), images()
    maps = model.attention_maps(x)
    attending = [block for block in model.blocks_by_name().values() if hasattr(block, "attn")]
    assert len(maps) == len(attending)
    inputs = []
    removals = [block.attn.register_forward_hook(lambda m, i, o: inputs.append((*i, o))) for block in attending]
    model(x)
    for remove in removals:
        remove()
    for block, A, (z, expected) in zip(attending, maps, inputs, strict=True):
        np.testing.assert_allclose(A.numpy().sum(-1), 1, rtol=1e-12)
        B, *_, D = z.shape
        qkv = block.attn.packed(z) if "swin" in family else block.attn.qkv(z)
        qkv = qkv.reshape(B, -1, 3, block.attn.num_heads, D // block.attn.num_heads)
        v = qkv[:, :, 2].transpose(1, 2)  # (B, L, heads, d) -> (B, heads, L, d)
        y = block.attn.proj((A @ v).transpose(1, 2).reshape(B, -1, D))
        np.testing.assert_allclose(y.numpy(), expected.numpy().reshape(B, -1, D), atol=1e-13)


def test_attention_maps_of_selected_blocks():
    model = formula.fill(small("swin"))
    first, last = model.attention_maps(images(), [0, -1])
    assert first.shape == (2, 2, 64, 64) and last.shape == (2, 4, 16, 16)
    assert not first.requires_grad
    with pytest.raises(TypeError, match="ConvNeXt has no attention; forward_intermediates"):
        small("convnext").attention_maps(images())


@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_attention_to_padding_is_left_out(family):
    model = formula.fill(small(family))
    (A,) = model.attention_maps(images(1, 20), [0])  # 5 x 5 tokens in windows of 4: padded to 8 x 8
    sums = A.numpy().sum(-1).reshape(2, 5, 5)
    np.testing.assert_allclose(sums[:, :4, :4], 1, rtol=1e-12)
    assert (sums[:, 4] < 0.995).all() and (sums[:, :, 4] < 0.995).all()


# Names ----------------------------------------------------------------------------------------------------------------


def test_models_are_listed_by_patterns():
    """The arguments are those of timm's list_models; an empty filter lists all models."""
    every = models.list_models()
    assert every == models.list_models("") == models.list_models("*") == sorted(every)
    both = models.list_models(["swin_*_cifar", "vit_nano_cifar"], exclude_filters="*tiny*")
    assert both == sorted({*models.list_models("swin_*_cifar"), "vit_nano_cifar"} - {"swin_tiny_cifar"})
    assert models.list_models("swin_*", exclude_filters=["*_cifar", "*patch4*"]) == []
    assert models.list_models("swin_*", pretrained=True) == models.list_pretrained("swin_*")
    assert models.list_pretrained(["swin_pico_cifar.*", "vit_nano_cifar.*"]) == [
        "swin_pico_cifar.shapes", "vit_nano_cifar.shapes",
    ]  # fmt: skip


# Fine-tuning ----------------------------------------------------------------------------------------------------------


@each_family
def test_reset_classifier_replaces_the_head(family):
    model = formula.fill(small(family))
    features = model.forward_head(model.forward_features(images()), pre_logits=True)
    assert features.shape == (2, model.num_features)
    model.reset_classifier(3)
    assert model(images()).shape == (2, 3) and model.num_classes == 3
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float64)}
    model.reset_classifier(0)
    np.testing.assert_allclose(model(images()).numpy(), features.numpy(), rtol=1e-12, atol=1e-14)
    assert not any(name.startswith("head") for name, _ in model.named_parameters())


@each_family
def test_reset_classifier_takes_a_pooling(family):
    """As in timm, by position or name. Where the model cannot change its pooling, only its own is accepted."""
    model = formula.fill(small(family))
    before, features = model.global_pool, model.forward_features(images())
    model.reset_classifier(0, before)
    np.testing.assert_allclose(model(images()).numpy(), model.forward_head(features).numpy(), rtol=1e-12, atol=1e-14)
    if family in ("vit", "hybrid", "deit3", "dinov2"):
        model.reset_classifier(num_classes=0, global_pool="")
        np.testing.assert_array_equal(model(images()).numpy(), features.numpy())
        model.reset_classifier(3, "avg")
        assert model(images()).shape == (2, 3)
        model.reset_classifier(0)
        mean = features[:, model.num_prefix_tokens :].mean(1)
        np.testing.assert_allclose(model(images()).numpy(), mean.numpy(), rtol=1e-12, atol=1e-14)
    head = model.head
    with pytest.raises(ValueError, match=r"global_pool must be .*, got 'max'"):
        model.reset_classifier(3, "max")
    assert model.head is head and model.num_classes == 0


@each_family
def test_depths_rise_from_the_stem_to_the_head(family):
    model = small(family)
    depths, blocks = model.layer_ids(), list(model.blocks_by_name())
    assert set(depths) == {name for name, _ in model.named_parameters()}
    for number, block in enumerate(blocks, 1):
        assert {depth for name, depth in depths.items() if name.startswith(block + ".")} == {number}
    assert depths["head.weight"] == depths["norm.weight"] == len(blocks) + 1
    assert min(depths.values()) == 0


def test_downsampling_has_the_depth_of_the_next_block():
    swin, convnext, hybrid = (small(family).layer_ids() for family in ("swin", "convnext", "hybrid"))
    assert swin["layers.0.downsample.norm.weight"] == swin["layers.1.blocks.0.norm1.weight"] == 3
    assert convnext["downsample_layers.2.1.weight"] == convnext["stages.2.0.gamma"] == 4
    assert convnext["downsample_layers.0.1.weight"] == 0
    assert hybrid["patch_embed.backbone.stem.conv.weight"] == 0
    assert hybrid["patch_embed.proj.weight"] == hybrid["pos_embed"] == hybrid["blocks.0.attn.qkv.weight"] == 3


@each_family
def test_only_weight_matrices_have_weight_decay(family):
    model = small(family)
    names = {id(p): name for name, p in model.named_parameters()}
    excluded, decaying = param_groups(model, lr=0.1, weight_decay=0.05)
    assert (excluded["weight_decay"], decaying["weight_decay"]) == (0, 0.05) and excluded["lr"] == decaying["lr"] == 0.1
    decaying, excluded = ([names[id(p)] for p in group["params"]] for group in (decaying, excluded))
    assert all(name.endswith("weight") and "norm" not in name for name in decaying)
    assert {"norm.weight", "head.bias"} <= set(excluded) and len(decaying) + len(excluded) == len(names)
    of_offsets = ("pos_embed", "_token", "bias_table", "gamma", "beta", "logit_scale", "cpb_mlp.0.weight")
    offsets = [name for name in names.values() if name.endswith(of_offsets)]
    assert set(offsets) <= set(excluded)


@each_family
def test_layer_decay_gives_early_layers_lower_learning_rates(family):
    model = small(family)
    depths, n = model.layer_ids(), len(model.blocks_by_name())
    groups = param_groups(model, lr=0.1, weight_decay=0.05, layer_decay=0.5)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.1 * 0.5 ** (n + 1 - depths[name])), name
    optimizer = optim.AdamW(groups)
    F.cross_entropy(model(images().float()), Tensor([0, 1])).backward()
    optimizer.step()


def test_param_groups_of_other_modules():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    excluded, decaying = param_groups(model, 0.1, 0.05)
    assert decaying["params"] == [model[0].weight] and len(excluded["params"]) == 3
    for layer_decay in (0, -0.5, 1.5):
        with pytest.raises(ValueError, match="layer_decay must be above 0"):
            param_groups(model, 0.1, 0.05, layer_decay)
    with pytest.raises(TypeError, match=r"layer_decay needs an ImageModel, .* got Sequential"):
        param_groups(model, 0.1, 0.05, layer_decay=0.9)


# Arguments and dtypes -------------------------------------------------------------------------------------------------


@each_family
def test_empty_batches(family):
    assert small(family)(Tensor(np.empty((0, 3, 32, 32), np.float32))).shape == (0, 7)


@each_family
def test_num_classes_in_chans_and_drop_path_rate_are_checked(family):
    for overrides in ({"num_classes": -3}, {"num_classes": None}, {"in_chans": 0}, {"in_chans": 1.5}):
        with pytest.raises(ValueError, match=f"{next(iter(overrides))} must be an integer, at least"):
            small(family, **overrides)
    for rate in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"drop_path_rate: a probability must be from 0 to 1, got {rate}"):
            small(family, drop_path_rate=rate)
    assert small(family, img_size=np.int64(32)).img_size == (32, 32)


WRONG_SIZES = [
    (family, name, value)
    for family, names in {
        "vit": ("patch_size", "in_chans", "embed_dim", "num_heads", "representation_size"),
        "hybrid": ("patch_size", "in_chans", "embed_dim", "num_heads", "stem_chs"),
        "swin": ("patch_size", "window_size", "in_chans", "embed_dim"),
        "swinv2": ("patch_size", "window_size", "in_chans", "embed_dim"),
        "convnext": ("in_chans", "stem_size", "kernel_size"),
    }.items()
    for name in names
    for value in (0, -1, 1.5, "8", True, (8, 8, 8), (8, 0), (8.0, 8), ())
]


@pytest.mark.parametrize(("family", "name", "value"), WRONG_SIZES)
def test_invalid_sizes_raise(family, name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer.*, at least 1, got"):
        small(family, **{name: value})


@pytest.mark.parametrize(
    ("family", "overrides", "message"),
    [
        ("vit", {"embed_dim": (24, 24)}, "embed_dim must be an integer, at least 1, got .24, 24"),
        ("convnext", {"kernel_size": (7, 7)}, "kernel_size must be an integer, at least 1, got .7, 7"),
        ("convnext", {"stem_size": (4, 2)}, "stem_size must be an integer, at least 1, got .4, 2"),
        ("convnext", {"depths": 2}, "depths must be a sequence of integers, .* one for each stage, got 2"),
        ("convnext", {"dims": (8, 12, 0)}, "dims must be .* one for each stage"),
        ("swin", {"depths": "22"}, "depths must be .* one for each stage"),
        ("swin", {"num_heads": 2}, "num_heads must be .* one for each stage"),
        ("hybrid", {"layers": (1, 0)}, "layers must be .* one for each stage"),
        ("vit", {"embed_dim": 25}, "num_heads must divide embed_dim"),
        ("dinov2", {"reg_tokens": -1}, "reg_tokens must be an integer, at least 0, got -1"),
        ("dinov2", {"mlp_ratio": 1.05}, "halves embed_dim . mlp_ratio, which must be even, got 25"),
        ("distilled", {"global_pool": "avg"}, "global_pool must be 'token', .* got 'avg'"),
        ("distilled", {"representation_size": 20}, "representation_size None, got .* 20"),
        ("vit", {"drop_rate": -0.1}, "drop_rate: a probability must be from 0 to 1, got -0.1"),
        ("vit", {"attn_drop_rate": 1.1}, "attn_drop_rate: a probability must be from 0 to 1, got 1.1"),
        ("swin", {"attn_drop_rate": float("nan")}, "attn_drop_rate: a probability must be from 0 to 1, got nan"),
        ("convnext", {"drop_path_rate": "0.1"}, "drop_path_rate: a probability must be from 0 to 1, got '0.1'"),
        ("vit", {"mlp_ratio": 0}, "mlp_ratio must be a number that gives the MLP a hidden channel, got 0"),
        ("swin", {"mlp_ratio": float("inf")}, "mlp_ratio must be a number"),
        ("convnext", {"mlp_ratio": -4}, "mlp_ratio must be a number"),
    ],
)
def test_other_invalid_arguments_raise(family, overrides, message):
    with pytest.raises(ValueError, match=message):
        small(family, **overrides)


@each_family
def test_float32_stays_float32(family):
    model = small(family)
    x = Tensor(images().numpy().astype(np.float32), requires_grad=True)
    y = model(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == np.float32
    assert {p.grad.dtype for p in model.parameters()} == {np.dtype(np.float32)}


@each_family
def test_other_numbers_of_channels_and_classes(family):
    model = small(family, in_chans=1, num_classes=3)
    assert model(minigrad.randn(2, 1, 32, 32)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"needs images.*1, .*got \(2, 3, 32, 32\)"):
        model(minigrad.randn(2, 3, 32, 32))


@pytest.mark.parametrize("size", [(32,), (32, 32, 32), 0, (32, -1), 32.0, True])
@each_family
def test_invalid_image_sizes_raise(family, size):
    with pytest.raises(ValueError, match="img_size must be an integer or a pair"):
        small(family, img_size=size)
