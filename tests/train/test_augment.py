"""Augmentation except RandAugment: results, probabilities, and equality on CPU, GPU and in a CUDA graph."""

import re
from collections import Counter
from itertools import permutations, product
from math import ceil, floor, inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor, nn, optim
from minigrad import functional as F
from minigrad.backend import to_device
from minigrad.backend.batch import Rows, split
from minigrad.backend.random import Generator
from minigrad.cuda_graph import GraphedStep
from tests.backend.test_random import counted_blocks, generator_of
from tests.cuda.runner import needs_compiler
from train.data.augment import Augment, Cutout, Flip, Mix, RandomErasing, ShiftedCrop, Transform, beta, one_hot
from train.data.batches import repeated
from train.data.colorjitter import ColorJitter, color_jitter, jitter, permutation
from train.data.randaugment import RandAugment, rand_augment

SEEDS = st.integers(0, 2**32)
ON_PIXELS = {
    "flip": Flip(),
    "crop": ShiftedCrop(3),
    "reflecting crop": ShiftedCrop(2, "reflect"),
    "RandAugment": RandAugment(9, std=0.5, prob=0.9),
    "increasing RandAugment": RandAugment(7, 3, increasing=True, std=inf),
    "colour jitter": ColorJitter(0.4, 0.5, 2),
    "colour jitter with hue": ColorJitter(0.4, 0.4, 0.4, 0.5),
}
NORMALISED = {
    "cutout": Cutout(4),
    "erasing by pixels": RandomErasing(0.7),
    "erasing by channels": RandomErasing(0.7, "rand"),
    "erasing by zeros": RandomErasing(0.7, "const"),
}
ALL = ON_PIXELS | NORMALISED
NOISE = ("erasing by pixels", "erasing by channels")
NEVER = {
    "flip": Flip(0),
    "crop": ShiftedCrop(0),
    "RandAugment": RandAugment(prob=0),
    "no ops": RandAugment(num_ops=0),
    "colour jitter": ColorJitter(),
    "cutout": Cutout(0),
    "erasing": RandomErasing(0),
}


def made(name, N, H, W, seed=0):
    """Images for the transform `name`: uint8 pixels without black or white, or normalised float32."""
    rng = np.random.default_rng(seed)
    if name in NORMALISED:
        return rng.standard_normal((N, 3, H, W)).astype(np.float32)
    return rng.integers(20, 220, (N, 3, H, W), dtype=np.uint8)


def host(x):
    return to_device(x, "cpu")


def assert_same(found, expected, *, noise):
    """Equal bit for bit; normal noise may differ in the last bits, as log and cos of NumPy and CUDA do."""
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 if noise else 0)


# All transforms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@given(N=st.integers(1, 7), H=st.integers(3, 24), W=st.integers(3, 24), seed=SEEDS)
def test_devices_agree_and_the_input_is_unchanged(device, name, N, H, W, seed):
    images = made(name, N, H, W, seed)
    expected = ALL[name](images, Generator(seed))
    given, before = to_device(images, device), images.copy()
    result = ALL[name](given, Generator(seed))
    assert_same(host(result), expected, noise=name in NOISE)
    np.testing.assert_array_equal(host(given), before)
    assert type(result) is type(given) and result.shape == images.shape and result.dtype == images.dtype


@pytest.mark.parametrize("name", ALL)
def test_reference_implementation_runs_on_a_gpu(device, name):
    for seed, (H, W) in enumerate([(3, 8), (17, 17), (32, 32)]):
        images = made(name, 9, H, W, seed)
        with minigrad.without_fast_paths():
            result = ALL[name](to_device(images, device), Generator(seed))
        assert_same(host(result), ALL[name](images, Generator(seed)), noise=name in NOISE)


@pytest.mark.parametrize("name", ALL)
@given(N=st.integers(2, 9), seed=SEEDS, data=st.data())
def test_images_are_independent(name, N, seed, data):
    images, others = made(name, N, 7, 6, seed), made(name, N, 7, 6, seed + 1)
    i = data.draw(st.integers(0, N - 1))
    others[i] = images[i]
    first, second = (ALL[name](x, Generator(seed)) for x in (images, others))
    np.testing.assert_array_equal(first[i], second[i])


@pytest.mark.parametrize("name", ALL)
def test_each_image_gets_its_own_random_numbers(name):
    """Copies of one image become different images, which depend on the seed, but not on the input's strides."""
    images = np.repeat(made(name, 1, 9, 9), 40, axis=0)
    first, second = (ALL[name](images, Generator(seed)) for seed in (1, 2))
    assert len({x.tobytes() for x in first}) > (1 if name == "flip" else 5)
    assert first.tobytes() != second.tobytes()
    view = np.asfortranarray(images)[::-1, :, ::-1, ::-1]  # any memory layout
    np.testing.assert_array_equal(ALL[name](view, Generator(1)), ALL[name](view.copy(), Generator(1)))


@pytest.mark.parametrize("name", NEVER)
@given(N=st.integers(1, 5), seed=SEEDS)
def test_switched_off_transforms_are_the_identity(name, N, seed):
    images = made(name, N, 5, 6, seed)
    np.testing.assert_array_equal(NEVER[name](images, Generator(seed)), images)


# Each transform -----------------------------------------------------------------------------------------------------


def test_flip_mirrors_images_with_its_probability():
    images = made("flip", 4000, 2, 3)
    result = Flip(0.3)(images, Generator(0))
    flipped = (result == images[..., ::-1]).all(axis=(1, 2, 3))
    assert (flipped | (result == images).all(axis=(1, 2, 3))).all()
    assert abs(flipped.mean() - 0.3) < 0.03
    np.testing.assert_array_equal(Flip(1)(images, Generator(0)), images[..., ::-1])


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crop_position_is_uniform(mode):
    P, N, H, W = 2, 2500, 6, 5
    images = made("crop", N, H, W)
    result = ShiftedCrop(P, mode)(images, Generator(0))
    padded = np.pad(images, ((0, 0), (0, 0), (P, P), (P, P)), mode=mode)
    seen = Counter()
    for top in range(2 * P + 1):
        for left in range(2 * P + 1):
            crop = padded[..., top : top + H, left : left + W]
            seen[top, left] = int((crop == result).all(axis=(1, 2, 3)).sum())
    assert seen.total() == N
    assert all(60 <= count <= 140 for count in seen.values())


def test_reflection_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="reflection padding by 4 pixels needs images larger than 4, got 8 x 4"):
        ShiftedCrop(4, "reflect")(made("crop", 1, 8, 4), Generator(0))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_cutout_square_has_a_uniform_centre(size):
    H, W, N = 5, 4, 2000
    images = made("cutout", N, H, W)
    result = Cutout(size)(images, Generator(0))
    cut = result == 0
    assert (cut == cut[:, :1]).all() and (result == np.where(cut, 0, images)).all()
    rows = [range(max(0, y - size // 2), min(H, y - size // 2 + size)) for y in range(H)]
    columns = [range(max(0, x - size // 2), min(W, x - size // 2 + size)) for x in range(W)]
    expected = Counter()
    for row in rows:
        for column in columns:
            mask = np.zeros((H, W), bool)
            mask[row.start : row.stop, column.start : column.stop] = True
            expected[mask.tobytes()] += N / (H * W)
    found = Counter(mask.tobytes() for mask in cut[:, 0])
    assert set(found) == set(expected)
    assert all(abs(found[mask] - count) < 5 * count**0.5 for mask, count in expected.items())


@pytest.mark.parametrize("prob", [0.25, 1.0])
@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_erasing_fills_one_rectangle(prob, mode):
    N, H, W = 403, 40, 30
    images = made("cutout", N, H, W)
    erasing = RandomErasing(prob, mode)
    result = erasing(images, Generator(0))
    changed = (result != images).any(axis=1)
    sizes = []
    for i in np.flatnonzero(changed.any(axis=(1, 2))):
        rows, columns = (np.flatnonzero(changed[i].any(axis=axis)) for axis in (1, 0))
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        assert changed[i][box].all()
        patch = result[i][:, *box]
        if mode == "const":
            assert not patch.any()
        elif mode == "rand":
            assert (patch == patch[:, :1, :1]).all() and patch[0, 0, 0] != patch[1, 0, 0]
        sizes.append((len(rows), len(columns)))
    assert floor(prob * N) <= len(sizes) <= ceil(prob * N)
    heights, widths = np.array(sizes).T
    whole = (heights < H) & (widths < W)  # the others are clipped to the image
    assert whole.mean() > 0.9
    area, aspect = (heights * widths / (H * W))[whole], (heights / widths)[whole]
    assert 0.01 < area.min() < 0.05 and 0.28 < area.max() < 0.36 and abs(area.mean() - 0.17) < 0.03
    assert 0.2 < aspect.min() < 0.5 and 2 < aspect.max() < 4 and abs(np.log(aspect).mean()) < 0.2
    if mode == "pixel":
        noise = result.transpose(0, 2, 3, 1)[changed]
        assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_erasing_probability_in_a_batch_of_one():
    """The probability is also correct if N · prob < 1."""
    image = made("cutout", 1, 5, 5)
    erased = [(RandomErasing(0.25)(image, Generator(seed)) != image).any() for seed in range(1000)]
    assert abs(np.mean(erased) - 0.25) < 0.05


def test_erasing_covers_every_pixel():
    images = made("cutout", 4000, 4, 5)
    often = (RandomErasing(1.0, "const")(images, Generator(0)) == 0)[:, 0].mean(axis=0)
    assert often.min() > 0.05
    np.testing.assert_allclose(often, often[::-1, ::-1], atol=0.04)


def test_color_jitter_factors_and_orders_are_uniform(monkeypatch):
    """Factors of strength 0.4 are in [0.6, 1.4], of strength 3 in [0, 4]. All 24 orders are equally frequent."""
    seen = []
    monkeypatch.setattr("train.data.colorjitter.jitter", lambda images, *arguments: seen.extend(arguments))
    ColorJitter(0.4, 3, 0, 0.1)(made("flip", 24_000, 1, 1), Generator(0))
    (brightness, contrast, saturation), hue, order = seen
    for values, low, high in ((brightness, 0.6, 1.4), (contrast, 0, 4), (hue, -0.1, 0.1)):
        at = np.sort((values - low) / (high - low))
        assert abs(at - (np.arange(24_000) + 0.5) / 24_000).max() < 0.01
    assert (saturation == 1).all()
    np.testing.assert_allclose(np.bincount(order, minlength=24), 1000, atol=150)
    assert abs(np.corrcoef([brightness, contrast, hue, order]) - np.eye(4)).max() < 0.03


def test_permutations_of_three_ops_are_all_different():
    assert list(zip(*permutation(np.arange(6)), strict=True)) == list(permutations(range(3)))


def test_hue_shift_of_a_third_permutes_the_channels():
    images = made("flip", 5, 4, 4) // 51 * 51  # levels at which 8-bit hues are exact
    images[:, 2] = images[:, :2].min(axis=1)
    shifted = jitter(images, [np.ones(5)] * 3, np.full(5, 1 / 3), np.full(5, 18))
    assert abs(shifted.astype(int) - images[:, [2, 0, 1]]).max() <= 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.4", (0.4, 0.4, 0.4, 0)), ("0.1,0.2,0.3", (0.1, 0.2, 0.3, 0)), ("0, 0.2,0.3,.5", (0, 0.2, 0.3, 0.5))],
)
def test_color_jitter_notation(text, expected):
    assert color_jitter(text) == ColorJitter(*expected)


@pytest.mark.parametrize("text", ["", "x", "0.4,0.4", "0.1,0.1,0.1,0.1,0.1", "0.4;0.4;0.4"])
def test_wrong_color_jitter_notation_is_refused(text):
    with pytest.raises(ValueError, match=f'as in 0.4,0.4,0.4,0.1, got "{text}"'):
        color_jitter(text)


@pytest.mark.parametrize(("shape", "dtype"), [((2, 1, 4, 4), np.uint8), ((2, 3, 4, 4), np.float32)])
def test_color_jitter_of_other_images_is_refused(shape, dtype):
    with pytest.raises(ValueError, match=re.escape(f"must be (N, 3, H, W) uint8, RGB from 0 to 255, got {shape}")):
        ColorJitter(0.4)(np.zeros(shape, dtype), Generator(0))


# Mixup and CutMix ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0, 2.0, 8.0])
def test_beta_moments_and_cdf(alpha):
    """Samples have the moments of Beta(α, α) and, for α with a closed form, its distribution function."""
    found = np.sort(beta(np.float64(alpha), Generator(0).uniform((4, 100_000), np.float64)))
    assert found[0] >= 0 and found[-1] <= 1
    assert abs(found.mean() - 0.5) < 0.005
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.02)
    assert ((found - 0.5) ** 4).mean() == pytest.approx(3 / (16 * (2 * alpha + 1) * (2 * alpha + 3)), rel=0.03)
    known = {0.5: lambda x: 2 / np.pi * np.arcsin(np.sqrt(x)), 1.0: lambda x: x, 2.0: lambda x: x**2 * (3 - 2 * x)}
    if alpha in known:
        assert abs(known[alpha](found) - (np.arange(100_000) + 0.5) / 100_000).max() < 0.006


@pytest.mark.parametrize("alpha", [1e-4, 0.2, 1.0, 1e4])
def test_beta_stays_within_0_and_1(alpha):
    u = np.array(list(product([0, 0.5, 1 - 2.0**-24], repeat=4))).T
    found = beta(np.float64(alpha), u)
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_box_area_is_1_minus_lambda(seed):
    H, W, u = 40, 60, Generator(seed).uniform((8,)).astype(np.float64)
    side = (1 - beta(np.array(1.0), u[1:5])) ** 0.5
    rows, columns = (
        abs(np.arange(size) + 0.5 - int(centre * size)) <= side * size / 2 for size, centre in ((H, u[5]), (W, u[6]))
    )
    weight, _ = Mix(cutmix=1.0).weights(H, W, Generator(seed), "cpu")
    differing = weight == (rows[:, None] & columns)  # the weight is 0 in the box
    assert differing.sum() <= 2 * (H + W)  # rounding may change one row and one column at the box's edges


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.4, 1.0)])
@given(N=st.integers(1, 6), H=st.integers(1, 9), W=st.integers(1, 9), seed=SEEDS)
def test_targets_and_pixels_have_the_same_lambda(device, mixup, cutmix, N, H, W, seed):
    images, labels = made("cutout", N, H, W, seed), np.random.default_rng(seed).integers(0, 4, N)
    given, before = to_device(images, device), images.copy()
    settings = Augment(mixup=mixup, cutmix=cutmix)
    mixed, targets = map(host, settings.mixed(given, to_device(labels, device), 4, Generator(seed)))
    np.testing.assert_array_equal(host(given), before)
    assert mixed.dtype == targets.dtype == np.float32

    weight, share = Mix(mixup, cutmix).weights(H, W, Generator(seed), "cpu")
    assert share == pytest.approx(weight.mean(), abs=1e-6)
    np.testing.assert_array_equal(mixed, (weight * images + (1 - weight) * images[::-1]))
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    for n in range(N):
        own, other = labels[n], labels[N - 1 - n]
        assert targets[n, own] == pytest.approx(share + (own == other) * (1 - share), abs=1e-6)
        assert targets[n, other] == pytest.approx(1 - share + (own == other) * share, abs=1e-6)


def kinds(mix, count=1500):
    """The frequencies of no mixing, mixup and CutMix, detected from the weights."""
    seen = Counter()
    for seed in range(count):
        weight, share = mix.weights(8, 8, Generator(seed), "cpu")
        if np.isin(weight, (0, 1)).all():
            seen["nothing" if share == 1 else "cutmix"] += 1
        else:
            assert (weight == share).all()
            seen["mixup"] += 1
    return {kind: number / count for kind, number in seen.items()}


def test_mixup_and_cutmix_probabilities():
    found = kinds(Mix(1.0, 8.0, prob=0.6, switch_prob=0.25))
    assert found == pytest.approx({"nothing": 0.4, "mixup": 0.45, "cutmix": 0.15}, abs=0.04)
    assert kinds(Mix(mixup=1.0), 100) == {"mixup": 1}
    assert kinds(Mix(cutmix=8.0), 100) == {"cutmix": 1}
    assert kinds(Mix(1.0, 8.0, switch_prob=0.0), 100) == {"mixup": 1}
    assert kinds(Mix(1.0, 8.0, prob=0.0), 100) == {"nothing": 1}


def test_mixup_and_cutmix_have_separate_alphas():
    drawn = [Mix(50.0, 0.01).weights(40, 40, Generator(seed), "cpu") for seed in range(300)]
    for weight, share in drawn:
        assert 0.3 < share < 0.7 or np.isin(weight, (0, 1)).all()
    sides = [int((weight == 0).any(axis=0).sum()) for weight, _ in drawn]
    assert sum(0 < side < 20 for side in sides) < 30, "boxes of nearly none or all of the image, some clipped"


def test_loss_of_mixed_targets_is_the_mixed_loss():
    """Cross-entropy is linear in its targets, with label smoothing in `mixed` or in the loss."""
    rng = np.random.default_rng(0)
    logits, labels = Tensor(rng.standard_normal((6, 5)).astype(np.float32)), rng.integers(0, 5, 6)
    images = made("cutout", 6, 3, 3)
    _, plain = Augment(mixup=0.8).mixed(images, labels, 5, Generator(3))
    _, smooth = Augment(mixup=0.8, smoothing=0.1).mixed(images, labels, 5, Generator(3))
    _, share = Mix(0.8).weights(3, 3, Generator(3), "cpu")
    first, second = (F.cross_entropy(logits, Tensor(x), label_smoothing=0.1).item() for x in (labels, labels[::-1]))
    expected = pytest.approx(share * first + (1 - share) * second, rel=1e-5)
    assert F.cross_entropy(logits, Tensor(plain), label_smoothing=0.1).item() == expected
    assert F.cross_entropy(logits, Tensor(smooth)).item() == expected


def test_one_hot_with_label_smoothing():
    np.testing.assert_array_equal(one_hot(np.array([2, 0]), 3), np.array([[0, 0, 1], [1, 0, 0]], np.float32))
    np.testing.assert_allclose(one_hot(np.array([1]), 4, 0.2), [[0.05, 0.85, 0.05, 0.05]], rtol=1e-6)


# Repeated augmentation ----------------------------------------------------------------------------------------------


@given(count=st.integers(0, 50), repeats=st.integers(1, 5))
def test_repeats_of_an_image_are_adjacent(count, repeats):
    order = np.random.default_rng(0).permutation(count)
    result = repeated(order, repeats)
    assert len(result) == count and result.dtype == order.dtype
    for start in range(0, count, repeats):  # a batch size divisible by `repeats` has all copies of an image
        assert set(result[start : start + repeats]) == {order[start // repeats]}


def test_zero_repeats_are_refused():
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        repeated(np.arange(3), 0)


# Augment ------------------------------------------------------------------------------------------------------------

EVERYTHING = Augment(
    crop_padding=2, aa="rand-m9-mstd0.5-inc1", color_jitter="0.4,0.4,0.4,0.1", cutout=3, reprob=0.4, mixup=0.8,
    cutmix=1.0, smoothing=0.1,
)  # fmt: skip


def through(augment, images, labels, generator):
    """Augment as in a training step."""
    x = augment.pixels(images, generator).astype(np.float32) / 255 - 0.5
    return augment.mixed(augment.normalized(x, generator), labels, 10, generator)


def test_transforms_run_in_order():
    images, labels = made("flip", 20, 8, 8), np.arange(20) % 10
    generator = Generator(1)
    x = ShiftedCrop(2)(Flip()(images, generator), generator)
    x = rand_augment("rand-m9-mstd0.5-inc1", (128, 128, 128))(x, generator)
    x = ColorJitter(0.4, 0.4, 0.4, 0.1)(x, generator).astype(np.float32) / 255 - 0.5
    x = RandomErasing(0.4)(Cutout(3)(x, generator), generator)
    expected = Mix(0.8, 1.0)(x, one_hot(labels, 10, 0.1), generator)
    for mine, theirs in zip(through(EVERYTHING, images, labels, Generator(1)), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_all_transforms_off_is_the_identity():
    augment, images, labels = Augment(0.0, 0), made("flip", 4, 6, 6), np.array([1, 0, 2, 2])
    generator = Generator(0)
    assert augment.pixels(images, generator) is images and augment.normalized(images, generator) is images
    mixed, targets = augment.mixed(images, labels, 3, generator)
    assert mixed is images and not augment.mixes and EVERYTHING.mixes
    np.testing.assert_array_equal(targets, np.eye(3, dtype=np.float32)[labels])
    assert generator.draws == 0


def test_randaugment_fills_with_the_mean_colour():
    images = np.zeros((60, 3, 8, 8), np.uint8)
    result = Augment(0.0, 0, aa="rand-m9-n1-p1-inc1", mean=(0.2, 0.502, 1.0)).pixels(images, Generator(0))
    colours = {tuple(x[:, y, 0]) for x in result for y in range(8)}
    assert (51, 128, 255) in colours


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hflip", 1.5, "hflip must be from 0 to 1, got 1.5"),
        ("reprob", -0.1, "reprob must be from 0 to 1"),
        ("mixup", -1.0, "mixup must be at least 0 (0: off), got -1"),
        ("cutmix", inf, "cutmix must be at least 0"),
        ("cutout", -1, "cutout must be at least 0"),
        ("crop_padding_mode", "edge", "crop_padding_mode must be one of constant, reflect, got 'edge'"),
        ("remode", "black", "remode must be one of pixel, rand, const, got 'black'"),
        ("aa", "rand-q", '"q" in "rand-q"'),
        ("color_jitter", "-0.4", "colour jitter: brightness must be at least 0 (0: off), got -0.4"),
        ("color_jitter", "0,0,nan", "colour jitter: saturation must be at least 0 (0: off), got nan"),
        (
            "color_jitter",
            "0,0,0,0.6",
            "colour jitter: hue must be from 0 (off) to 0.5, half the colour circle, got 0.6",
        ),
    ],
)
def test_invalid_fields_are_refused(field, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Augment(**{field: value})


# Parts of a batch ---------------------------------------------------------------------------------------------------

PROBS, COUNTS, PARTS = st.floats(0, 1), st.integers(0, 40), st.integers(1, 8)
OF_PIXELS = st.one_of(
    st.builds(Flip, PROBS),
    st.builds(ShiftedCrop, st.integers(0, 2), st.sampled_from(["constant", "reflect"])),
    st.builds(
        RandAugment, st.floats(0, 10), st.integers(0, 3), PROBS, st.sampled_from([0.0, 0.5, inf]),
        increasing=st.booleans(),
    ),
    st.builds(ColorJitter, PROBS, PROBS, PROBS, st.floats(0, 0.5)),
)  # fmt: skip
OF_NORMALISED = st.one_of(
    st.builds(Cutout, st.integers(0, 9)),
    st.builds(RandomErasing, PROBS, st.sampled_from(["pixel", "rand", "const"])),
)


@given(
    st.tuples(OF_PIXELS, st.just("flip")) | st.tuples(OF_NORMALISED, st.just("cutout")), COUNTS, PARTS, st.booleans(),
    st.integers(3, 9), st.integers(3, 9), SEEDS,
)  # fmt: skip
def test_parts_are_transformed_as_in_the_whole_batch(device, transform, count, parts, mirrored, H, W, seed):
    transform, kind = transform
    images, whole = to_device(made(kind, count, H, W, seed), device), Generator(seed)
    expected = host(transform(images, whole))
    for rows in split(count, parts, mirrored=mirrored):
        generator = generator_of(rows, seed)
        found = host(transform(images[to_device(rows.index, device)], generator))
        assert found.dtype == expected.dtype and generator.draws == whole.draws and generator.rows is rows
        np.testing.assert_array_equal(found, expected[rows.index])


@pytest.mark.parametrize("name", ALL)
@given(count=st.integers(1, 30), parts=PARTS, seed=SEEDS)
def test_parts_are_transformed_alike_by_the_reference_on_a_gpu(device, name, count, parts, seed):
    images = made(name, count, 6, 7, seed)
    expected = ALL[name](images, Generator(seed))
    for rows in split(count, parts):
        part = to_device(images[rows.index], device)
        with minigrad.without_fast_paths():
            found = ALL[name](part, generator_of(rows, seed))
        assert_same(host(found), expected[rows.index], noise=name in NOISE)


AUGMENTS = st.builds(
    Augment, PROBS, st.integers(0, 2), st.sampled_from(["constant", "reflect"]),
    st.sampled_from([None, "rand-m9-mstd0.5-inc1"]), st.sampled_from(["0", "0.4"]), st.integers(0, 5), PROBS,
    st.sampled_from(["pixel", "rand"]), st.sampled_from([0, 0.8]), st.sampled_from([0, 1.0]), PROBS, PROBS,
    st.sampled_from([0, 0.1]),
)  # fmt: skip


@given(AUGMENTS, st.integers(1, 24), PARTS, st.booleans(), SEEDS)
def test_parts_of_the_transform_equal_the_transform_of_the_batch(device, augment, count, parts, mirrored, seed):
    def transformed(index, generator):
        batch = (to_device(x[index], device) for x in (images, labels))
        transform = Transform(augment, lambda x: x.astype(np.float32) / 255 - 0.5, 10, generator)
        return [[host(x) for x in transform(*batch)] for batch in [[*batch]] * 2]  # two steps

    images, labels = made("flip", count, 5, 6, seed), np.random.default_rng(seed).integers(0, 10, count)
    whole = Generator(seed)
    expected = transformed(np.arange(count), whole)
    for rows in split(count, parts, mirrored=mirrored or augment.mixes):
        generator = generator_of(rows, seed)
        for found, of_batch in zip(transformed(rows.index, generator), expected, strict=True):
            for x, y in zip(found, of_batch, strict=True):
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x, y[rows.index])
        assert generator.draws == whole.draws


def test_a_part_without_the_partners_of_its_images_is_not_mixed(device):
    images, targets = (to_device(x, device) for x in (made("cutout", 4, 3, 3), np.eye(4, dtype=np.float32)))
    for ranges in [((0, 4),), ((0, 2), (5, 7)), ((1, 3), (6, 8))]:
        generator = generator_of(Rows(8, ranges))
        with pytest.raises(ValueError, match=r"N - 1 - i.*split\(N, parts, mirrored=True\), got the images \(\("):
            Mix(0.8)(images, targets, generator)
        assert generator.draws == 0


@pytest.mark.parametrize("name", [*ON_PIXELS, *NORMALISED])
def test_images_of_another_number_than_the_part_are_refused(device, name):
    images = to_device(made(name, 5, 6, 6), device)
    with pytest.raises(ValueError, match=r"3 images.*(got shape \(|got 5 images)"):
        ALL[name](images, generator_of(Rows(8, ((2, 5),))))


def test_a_part_draws_the_noise_of_its_own_images():
    count, of_image = 64, 2 * 3 * 16 * 16 // 4  # blocks of noise for an image
    images = made("cutout", count, 16, 16)
    for rows in split(count, 8):
        with counted_blocks() as blocks:
            RandomErasing(1.0)(images[rows.index], generator_of(rows))
        assert len(rows) * of_image <= sum(blocks) < len(rows) * of_image + 2 * count


@needs_compiler
def test_cuda_graph_replays_with_new_random_numbers(device):
    """Each replay of the captured graph uses new random numbers, equal to those on the CPU."""
    if device == "cpu":
        pytest.skip("graphs are CUDA's")
    model = nn.Linear(4, 2).to(device)
    optimizer = optim.AdamW(model.parameters())
    batches = [(made("flip", 12, 8, 8, seed), np.random.default_rng(seed).integers(0, 10, 12)) for seed in range(5)]

    def step(images, labels):
        mixed = through(EVERYTHING, images, labels, minigrad.random.default_generator())
        optimizer.zero_grad()
        model(ones).sum().backward()
        optimizer.step()
        return mixed

    ones = Tensor(to_device(np.ones((1, 4), np.float32), device))
    graphed = GraphedStep(step, optimizer, warmup=1)
    minigrad.manual_seed(3)
    found = [[host(x).copy() for x in graphed(*(to_device(x, device) for x in batch))] for batch in batches]
    assert graphed.graph is not None
    generator, eager = Generator(3), Generator(3)
    for mine, batch in zip(found, batches, strict=True):
        for x, expected in zip(mine, through(EVERYTHING, *batch, generator), strict=True):
            assert_same(x, expected, noise=x.ndim == 4)
        for x, expected in zip(mine, through(EVERYTHING, *(to_device(x, device) for x in batch), eager), strict=True):
            np.testing.assert_array_equal(x, host(expected))
