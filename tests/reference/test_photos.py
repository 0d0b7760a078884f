"""Random resized crops against torchvision: the sampled boxes, and the pixels of a crop."""

import warnings
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad.backend.random import Generator
from models.compare import libraries
from train.data.photos import RandomResizedCrop, in_one_buffer, resized_crop

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    libraries.load("timm")
    from timm.data.transforms import RandomResizedCropAndInterpolation
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tv

SIDES = st.integers(1, 90)
RATIOS = st.sampled_from([(3 / 4, 4 / 3), (0.9, 1.1), (0.2, 0.5), (2.0, 3.0), (1.0, 1.0)])
SCALES = st.sampled_from([(0.08, 1.0), (0.5, 0.5), (0.9, 1.0), (1e-4, 1e-3), (1.0, 1.0)])


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(st.data())
def test_crop_equals_torchvision_bit_for_bit(data):
    H, W, size = data.draw(SIDES), data.draw(SIDES), data.draw(st.integers(1, 40))
    h, w = data.draw(st.integers(1, H)), data.draw(st.integers(1, W))
    i, j, bicubic = data.draw(st.integers(0, H - h)), data.draw(st.integers(0, W - w)), data.draw(st.booleans())
    image = noise(H, W, H * W)
    mode = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    expected = np.asarray(tv.resized_crop(Image.fromarray(image), i, j, h, w, [size, size], mode)).transpose(2, 0, 1)
    np.testing.assert_array_equal(resized_crop(image, i, j, h, w, size, bicubic=bicubic), expected)


class Uniform:
    """Stands in for `torch.empty(1)` and `torch.randint` in torchvision's `get_params`: takes the values from u.

    The order in u is that of minigrad: area and ratio of each of ten tries, then top and left.
    """

    def __init__(self, u):
        self.u, self.calls, self.integers = u, 0, 0

    def empty(self, *size):
        return self

    def uniform_(self, low, high):
        index = self.calls // 2 + (10 if self.calls % 2 else 0)
        self.calls += 1
        return torch.tensor([low + (high - low) * self.u[index]])

    def randint(self, low, high, size):
        self.integers += 1
        return torch.tensor([low + int((high - low) * self.u[19 + self.integers])])


@given(SIDES, SIDES, SCALES, RATIOS, st.integers(0, 1000))
def test_box_equals_torchvision_for_the_same_uniform_values(height, width, scale, ratio, seed):
    u = Generator(seed).uniform((22, 1), np.float64)
    found = RandomResizedCrop(scale, ratio).boxes(np.array([height]), np.array([width]), u)
    values = Uniform(u[:, 0])
    double = partial(torch.tensor, dtype=torch.float64)  # torchvision computes the logarithms in float32
    with patch.multiple(torch, empty=values.empty, randint=values.randint, tensor=double):
        expected = transforms.RandomResizedCrop.get_params(Image.fromarray(noise(height, width)), scale, ratio)
    largest = [max(1, side) for side in expected]  # torchvision's central crop may have no pixels
    assert found[2:, 0].tolist() == largest[2:]
    if min(expected[2:]) > 0:
        assert found[:, 0].tolist() == list(expected)


def test_distribution_is_timm_s():
    """Means and deviations of the boxes in a wide image, where many tries fail, within four standard errors."""
    H, W, N = 60, 200, 4000
    found = RandomResizedCrop().boxes(np.full(N, H), np.full(N, W), Generator(1).uniform((22, N), np.float64))
    image, scale, ratio = Image.fromarray(noise(H, W)), (0.08, 1.0), (3 / 4, 4 / 3)
    expected = np.array([RandomResizedCropAndInterpolation.get_params(image, scale, ratio) for _ in range(N)]).T
    for name, x, y in zip(("top", "left", "height", "width"), found, expected, strict=True):
        for moment in (1, 2):
            a, b = x.astype(float) ** moment, y.astype(float) ** moment
            assert abs(a.mean() - b.mean()) < 4 * np.sqrt((a.var() + b.var()) / N), (name, moment)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
def test_batch_equals_torchvision_on_each_image(interpolation):
    """The whole transform: boxes, filters and pixels of a batch."""
    images = [noise(40 + 3 * n, 90 - 5 * n, n) for n in range(12)]
    shapes = np.array([image.shape for image in images])
    photos = in_one_buffer(np.concatenate([image.ravel() for image in images]), shapes, 16)
    crop = RandomResizedCrop((0.1, 1.0), (0.5, 2.0), interpolation)
    u = Generator(3).uniform((23, 12), np.float64, axis=1)
    boxes = crop.boxes(shapes[:, 0], shapes[:, 1], u[:22])
    bicubic = {"bilinear": np.zeros(12), "bicubic": np.ones(12), "random": u[22] < 0.5}[interpolation]
    expected = [
        tv.resized_crop(Image.fromarray(image), *box, [16, 16], mode)
        for image, box, mode in zip(
            images,
            boxes.T.tolist(),
            [InterpolationMode.BICUBIC if b else InterpolationMode.BILINEAR for b in bicubic],
            strict=True,
        )
    ]
    found = crop(photos, Generator(3))
    np.testing.assert_array_equal(found, [np.asarray(image).transpose(2, 0, 1) for image in expected])


def test_flags_have_timm_s_names_and_values():
    from timm.data import create_transform

    transform = create_transform(
        32, is_training=True, scale=(0.35, 1.0), ratio=(0.75, 4 / 3), interpolation="random", hflip=0.5
    )
    crop = transform.transforms[0]
    assert (crop.scale, crop.ratio) == ((0.35, 1.0), (0.75, 4 / 3))
    assert {mode.value for mode in crop.interpolation} == {"bilinear", "bicubic"}
