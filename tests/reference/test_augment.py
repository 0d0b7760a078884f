"""Augmentation against Pillow, timm and torchvision: all ops, RandAugment's notation, colour jitter, mixup, cutmix."""

import random
import warnings
from functools import reduce
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minigrad.backend.random import Generator
from models.compare import libraries
from train.data.augment import Augment, Mix, blend, one_hot
from train.data.colorjitter import color_jitter, hsv_to_rgb, jitter, permutation, rgb_to_hsv, shift_hue
from train.data.randaugment import COLOURS, MATRICES, arguments, rand_augment, warp

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    libraries.load("timm")
    from timm.data import Mixup, auto_augment
    from timm.data.mixup import cutmix_bbox_and_lam
    from torchvision.transforms.v2 import functional as tv

FILL = (17, 130, 250)
SIZES = st.integers(1, 40)


@st.composite
def pictures(draw):
    """Images (N, 3, H, W): noise, ramps, few gray levels, a small range, a constant."""
    N, H, W = draw(st.integers(1, 3)), draw(SIZES), draw(SIZES)
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    low = draw(st.integers(0, 255))
    high = draw(st.integers(low, 255))
    images = generator.integers(low, high + 1, (N, 3, H, W))
    if draw(st.booleans()):
        images = (images + np.arange(H)[:, None] + np.arange(W)) % 256
    if draw(st.booleans()):
        images[generator.random(images.shape) < 0.5] = low
    return images.astype(np.uint8)


def for_each_image(function, images):
    """A function of a Pillow image, applied to each image of the batch."""
    results = (np.asarray(function(Image.fromarray(x.transpose(1, 2, 0)))) for x in images)
    return np.stack([result.transpose(2, 0, 1) for result in results])


def minigrad_op(op, images, m, sign, increasing):
    """The op of minigrad, with the same magnitude for all images."""
    N, _, H, W = images.shape
    values = arguments(op, np.full(N, m), np.full(N, float(sign)), increasing)
    if op in MATRICES:
        return warp(images, MATRICES[op](*values, H, W), FILL)
    return COLOURS[op](images, *values)


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("op", [*MATRICES, *COLOURS])
@given(images=pictures(), magnitude=st.integers(0, 10) | st.floats(0, 30), sign=st.sampled_from([-1, 1]))
def test_ops_equal_timm(op, increasing, images, magnitude, sign):
    """The results, including the mapping from magnitudes to arguments, are bit-identical."""
    names = auto_augment._RAND_INCREASING_TRANSFORMS if increasing else auto_augment._RAND_TRANSFORMS
    name = next(name for name in names if name.removesuffix("Increasing") == op)
    hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BILINEAR, "magnitude_max": 30}
    transform = auto_augment.AugmentOp(name, prob=1, magnitude=magnitude, hparams=hparams)
    if op == "Posterize":
        assume(0 < arguments(op, np.float64(magnitude / 10), 1, increasing)[0] <= 8)  # the bits that Pillow accepts
    if op == "Rotate":
        assume(magnitude != 15)  # the 16th decimal of sin 45° is a tie, which NumPy and Python round differently
    with patch.object(random, "random", lambda: 0.9 if sign < 0 else 0.1):
        expected = for_each_image(transform, images)
    np.testing.assert_array_equal(minigrad_op(op, images, magnitude / 10, sign, increasing), expected)


@given(images=pictures(), factor=st.floats(0, 2), level=st.integers(0, 256), bits=st.integers(0, 8))
def test_ops_equal_torchvision(images, factor, level, bits):
    """Ops agree exactly or within 2 levels: torchvision's gray has other weights and truncates instead of rounding."""
    tensor, N = torch.from_numpy(images), len(images)
    factors, thresholds = np.full(N, factor), np.full(N, level)
    equal = np.testing.assert_array_equal
    equal(COLOURS["Invert"](images), tv.invert(tensor))
    equal(COLOURS["Equalize"](images), tv.equalize(tensor))
    equal(COLOURS["Posterize"](images, np.full(N, bits)), tv.posterize(tensor, bits))
    if level < 256:  # torchvision refuses thresholds beyond the dtype
        equal(COLOURS["Solarize"](images, thresholds), tv.solarize(tensor, level))

    def near(actual, expected, levels=1):
        assert abs(actual.astype(int) - expected.numpy().astype(int)).max() <= levels

    near(COLOURS["AutoContrast"](images), tv.autocontrast(tensor))  # float32 in torchvision
    near(COLOURS["Brightness"](images, factors), tv.adjust_brightness(tensor, factor))
    near(COLOURS["Contrast"](images, factors), tv.adjust_contrast(tensor, factor), 2)
    near(COLOURS["Color"](images, factors), tv.adjust_saturation(tensor, factor), 2)
    near(COLOURS["Sharpness"](images, factors), tv.adjust_sharpness(tensor, factor))


@given(
    images=pictures(),
    factors=st.tuples(*[st.floats(0, 3)] * 3),
    shift=st.none() | st.floats(-0.5, 0.5),
    order=st.integers(0, 23),
)
def test_colour_jitter_equals_torchvision(images, factors, shift, order):
    """On Pillow images bit for bit, in every order; the order is that of minigrad."""
    N = len(images)
    shifts = None if shift is None else np.full(N, shift)
    found = jitter(images, [np.full(N, factor) for factor in factors], shifts, np.full(N, order))
    functions = [
        (lambda x, f=f, factor=factor: f(x, factor))
        for f, factor in zip((tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation), factors, strict=True)
    ]
    functions = [functions[op] for op in permutation(order % 6)]
    if shift is not None:
        functions.insert(order // 6, lambda x: tv.adjust_hue(x, shift))
    expected = for_each_image(lambda x: reduce(lambda x, function: function(x), functions, x), images)
    np.testing.assert_array_equal(found, expected)


@given(images=pictures(), shift=st.floats(-0.5, 0.5))
def test_hue_of_a_tensor_is_near_that_of_an_image(images, shift):
    """torchvision's tensors have hues in float32, Pillow's images in 255 steps: a step is up to 6 levels."""
    found = shift_hue(images, np.full(len(images), shift)).astype(int)
    assert abs(found - tv.adjust_hue(torch.from_numpy(images), shift).numpy()).max() <= 14


def test_all_hues_equal_pillow():
    """RGB -> HSV and HSV -> RGB, for every third level."""
    level = np.arange(0, 256, 3, dtype=np.uint8)
    x = np.stack(np.meshgrid(level, level, level, indexing="ij")).reshape(1, 3, len(level), -1)
    pixels = np.ascontiguousarray(x[0].transpose(1, 2, 0))
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV")).transpose(2, 0, 1)
    np.testing.assert_array_equal(np.concatenate(rgb_to_hsv(x)), hsv)
    rgb = np.asarray(Image.frombytes("HSV", pixels.shape[1::-1], pixels.tobytes()).convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(hsv_to_rgb(*(x[:, c] for c in range(3)))[0], rgb)


@pytest.mark.parametrize("strengths", [0.4, 1.5, (0.4, 0.2, 0.1), (0.4, 0.4, 0.4, 0.1)])
def test_colour_jitter_ranges_equal_torchvision(strengths):
    """timm passes one number as brightness, contrast and saturation."""
    from timm.data import create_transform

    transform = create_transform(32, is_training=True, color_jitter=strengths)
    reference = next(t for t in transform.transforms if type(t).__name__ == "ColorJitter")
    texts = ",".join(map(str, strengths)) if isinstance(strengths, tuple) else str(strengths)
    seen, u = [], [np.zeros((5, 2), np.float32), np.full((5, 2), 1, np.float32)]
    with patch("train.data.colorjitter.jitter", lambda images, *arguments: seen.append(arguments)):
        for values in u:
            with patch.object(Generator, "uniform", lambda *a, values=values, **k: values):
                color_jitter(texts)(np.zeros((2, 3, 1, 1), np.uint8), Generator())
    (low, low_hue, _), (high, high_hue, _) = seen
    for name, first, last in zip(("brightness", "contrast", "saturation"), low, high, strict=True):
        assert getattr(reference, name) == pytest.approx((first[0], last[0]))
    hues = None if low_hue is None else pytest.approx((low_hue[0], high_hue[0]))
    assert reference.hue == hues


@given(
    text=st.builds(
        "rand-m{}-n{}-p{}-mstd{}-mmax{}-inc{}".format,
        st.integers(0, 10), st.integers(0, 4), st.sampled_from(["0", "0.25", "1", "1.0"]),
        st.sampled_from(["0", "0.5", "1", "101"]), st.integers(10, 30), st.integers(0, 1),
    )
)  # fmt: skip
def test_notation_equals_timm(text):
    reference, augmentation = auto_augment.rand_augment_transform(text, {"img_mean": FILL}), rand_augment(text, FILL)
    ops = reference.ops
    assert reference.num_layers == augmentation.num_ops
    assert {(op.prob, op.magnitude, op.magnitude_std, op.magnitude_max) for op in ops} == {
        (augmentation.prob, augmentation.magnitude, augmentation.std, augmentation.highest)
    }
    assert any("Increasing" in op.name for op in ops) == augmentation.increasing
    assert {op.name.removesuffix("Increasing") for op in ops} == {*MATRICES, *COLOURS}


def test_defaults_of_the_notation_equal_timm():
    reference, augmentation = (
        auto_augment.rand_augment_transform("rand", {"img_mean": FILL}),
        rand_augment("rand", FILL),
    )
    op = reference.ops[0]
    assert reference.num_layers == augmentation.num_ops and augmentation.increasing is (
        "Increasing" in reference.ops[4].name
    )
    assert (op.prob, op.magnitude, op.magnitude_std) == (augmentation.prob, augmentation.magnitude, augmentation.std)
    assert augmentation.highest == auto_augment._LEVEL_DENOM


@given(seed=st.integers(0, 2**32), smoothing=st.sampled_from([0.0, 0.1]), N=st.sampled_from([2, 6]), H=SIZES, W=SIZES)
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_mixup_and_cutmix_equal_timm(mixup, cutmix, seed, smoothing, N, H, W):
    """timm gets minigrad's random λ and box."""
    generator = np.random.default_rng(seed)
    images, labels = generator.standard_normal((N, 3, H, W)).astype(np.float32), generator.integers(0, 5, N)
    settings = Augment(mixup=mixup, cutmix=cutmix, smoothing=smoothing)
    actual, targets = settings.mixed(images, labels, 5, Generator(seed))
    weight, lam = Mix(mixup, cutmix).weights(H, W, Generator(seed), "cpu")

    reference = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=5)
    box = np.isin(weight, (0, 1)).all()
    rows, columns = (np.flatnonzero((weight == 0).any(axis=axis)) for axis in (1, 0))
    edges = (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) if len(rows) else (0, 0, 0, 0)
    with (
        patch.object(reference, "_params_per_batch", lambda: (0.5 if box else float(lam), box)),
        patch("timm.data.mixup.rand_bbox", lambda *a, **k: edges),
    ):
        expected = reference(torch.from_numpy(images.copy()), torch.from_numpy(labels))
    np.testing.assert_allclose(actual, expected[0].numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(targets, expected[1].numpy(), rtol=1e-6, atol=1e-7)


@given(seed=st.integers(0, 2**32), H=SIZES, W=SIZES, first_lam=st.floats(0.01, 0.99))
def test_cutmix_box_equals_timm(seed, H, W, first_lam):
    """For the same λ and centre, size of the box, clipping at the border, and corrected λ are equal."""
    u = np.random.default_rng(seed).random(2)
    centre = iter([int(u[0] * H), int(u[1] * W)])
    with patch("numpy.random.randint", lambda *a, **k: next(centre)):
        (top, bottom, left, right), lam = cutmix_bbox_and_lam((3, H, W), first_lam)
    uniform_values = np.array([0, 0, 0, 0, 0, *u, 0])
    with (
        patch.object(Generator, "uniform", lambda *a, **k: uniform_values),
        patch("train.data.augment.beta", lambda alpha, u: np.float64(first_lam)),
    ):
        weight, actual = Mix(cutmix=1.0).weights(H, W, Generator(), "cpu")
    expected = np.ones((H, W))
    expected[top:bottom, left:right] = 0
    np.testing.assert_array_equal(weight, expected)
    assert actual == pytest.approx(lam, abs=1e-6)


@given(seed=st.integers(0, 2**32), lam=st.floats(0, 1, width=32), smoothing=st.floats(0, 1))
def test_mixed_targets_equal_timm(seed, lam, smoothing):
    from timm.data.mixup import mixup_target

    labels = np.random.default_rng(seed).integers(0, 7, 6)
    expected = mixup_target(torch.from_numpy(labels), 7, lam, smoothing).numpy()
    actual = blend(one_hot(labels, 7, smoothing), np.float32(lam))
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
