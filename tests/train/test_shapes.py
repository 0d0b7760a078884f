"""The generated dataset: deterministic, balanced, and not solvable by colour alone."""

import numpy as np
import pytest

from minigrad.backend.random import Generator
from train.data import shapes


@pytest.fixture(scope="module")
def dataset():
    return shapes.load(1000, 500)


def test_shapes_and_dtypes(dataset):
    assert dataset.train.images.shape == (1000, 3, 32, 32) and dataset.train.images.dtype == np.uint8
    assert dataset.test.labels.shape == (500,) and dataset.test.labels.dtype == np.int64
    assert len(dataset.classes) == len(set(dataset.classes)) == 10


def test_same_images_every_time(dataset):
    again = shapes.load(1000, 500)
    np.testing.assert_array_equal(again.train.images, dataset.train.images)
    np.testing.assert_array_equal(again.test.images, dataset.test.images)


def test_smaller_dataset_is_a_prefix_of_a_larger_one(dataset):
    few = shapes.load(37, 5)
    np.testing.assert_array_equal(few.train.images, dataset.train.images[:37])
    np.testing.assert_array_equal(few.test.labels, dataset.test.labels[:5])


def test_another_seed_draws_other_images(dataset):
    other = shapes.draw(1000, Generator(12345))
    assert (other.images != dataset.train.images).mean() > 0.9


def test_train_and_test_share_no_image(dataset):
    train = {image.tobytes() for image in dataset.train.images}
    assert len(train) == 1000 and not train & {image.tobytes() for image in dataset.test.images}


def test_every_prefix_is_balanced(dataset):
    for count in (10, 500, 1000):
        assert np.bincount(dataset.train.labels[:count]).tolist() == [count // 10] * 10


def test_mean_and_std_match_the_images(dataset):
    channels = dataset.train.images.transpose(1, 0, 2, 3).reshape(3, -1) / 255
    np.testing.assert_allclose(channels.mean(1), dataset.mean, atol=0.02)
    np.testing.assert_allclose(channels.std(1), dataset.std, atol=0.02)


@pytest.mark.parametrize("name", shapes.FIGURES)
def test_figure_is_a_signed_distance(name):
    """Near the outline the gradient has norm 1. The figure lies within the unit circle."""
    axis = np.linspace(-1.3, 1.3, 261)
    u, v = axis + 0.0013, axis[:, None] + 0.0007  # off the symmetry axes
    d = shapes.FIGURES[name](u, v)
    slope = np.hypot(*np.gradient(d, axis[1] - axis[0]))
    near = abs(d) < 0.1
    assert np.quantile(abs(slope[near] - 1), 0.75) < 0.02
    assert (d[np.hypot(u, v) > 1.02] > 0).all()
    assert 0.15 < (d < 0).sum() * (axis[1] - axis[0]) ** 2 / np.pi < 1.01


def test_figures_have_the_expected_area():
    """The expected areas are computed from geometry."""
    axis = np.linspace(-1.1, 1.1, 1101)
    cell = (axis[1] - axis[0]) ** 2
    area = {name: (figure(axis, axis[:, None]) < 0).sum() * cell for name, figure in shapes.FIGURES.items()}
    expected = {
        "disc": np.pi,
        "ring": np.pi * (1 - 0.56**2),
        "square": 2,
        "triangle": 3 * np.sqrt(3) / 4,
        "cross": 4 * 0.27 * (2 * 0.96 - 0.27),
        "star": 5 * 0.45 * np.sin(np.pi / 5),
        "heart": 2 * 0.75**2 + np.pi * 0.75**2 / 2,
        "stripes": 2 * 3 / 5,
        "checkerboard": 1,
    }
    for name, value in expected.items():
        assert area[name] == pytest.approx(value, rel=0.01), name


def test_colours_do_not_predict_the_class(dataset):
    """A nearest-mean classifier on the mean colour of an image is near chance, 10 %."""

    def features(images):
        flat = images.reshape(len(images), 3, -1) / 255
        return flat.mean(axis=2)

    train, test = features(dataset.train.images), features(dataset.test.images)
    centres = np.stack([train[dataset.train.labels == c].mean(axis=0) for c in range(10)])
    guess = ((test[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert (guess == dataset.test.labels).mean() < 0.25
