"""Random resized crops: the boxes, batches that ranks share, and training on images of different sizes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad.backend import device_of, to_device
from minigrad.backend.batch import split
from minigrad.backend.random import Generator
from tests.train.small import EVERYTHING, Small, finish, info_of, interrupted, trainer_of
from tests.train.test_folder import paint
from train.__main__ import parse
from train.config.errors import InputError
from train.create import create_dataset
from train.data.dataset import Dataset, Split
from train.data.photos import RandomResizedCrop, in_one_buffer
from train.output import resume

pytest.importorskip("PIL.Image")
PAIR = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: (min(pair), max(pair)))


def photos(sizes, size=8, seed=0):
    """Photos of noise of these sizes, (height, width)."""
    rng = np.random.default_rng(seed)
    pixels = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes]
    shapes = np.array([x.shape for x in pixels])
    return in_one_buffer(np.concatenate([x.ravel() for x in pixels]), shapes, size)


SIZES = [(20, 30), (9, 9), (8, 40), (31, 17), (12, 12), (16, 9), (40, 8)]


def album(count, seed):
    """`count` photos of 32 pixels and more, and their labels."""
    sizes = np.random.default_rng(seed).integers(32, 65, (count, 2)).tolist()
    return Split(photos(sizes, 32, seed), np.arange(count) % 10)


@pytest.fixture(scope="module")
def dataset():
    test = np.random.default_rng(9).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    classes = tuple(map(str, range(10)))
    return Dataset("photos", album(60, 0), Split(test, np.arange(20) % 10), classes, (0.5,) * 3, (0.3,) * 3)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=20), PAIR, PAIR)
def test_boxes_are_within_the_images(sizes, scale, ratio):
    crop, (H, W) = RandomResizedCrop(scale, (ratio[0], 1 / ratio[0])), np.array(sizes).T
    top, left, height, width = crop.boxes(H, W, Generator(0).uniform((22, len(H)), np.float64))
    assert ((top >= 0) & (left >= 0) & (height > 0) & (width > 0)).all()
    assert ((top + height <= H) & (left + width <= W)).all()
    last = np.nextafter(np.ones((22, len(H))), 0)  # the largest uniform values
    top, left, height, width = crop.boxes(H, W, last)
    assert ((top + height <= H) & (left + width <= W)).all()


def test_area_ratio_and_position_have_the_stated_distribution():
    """In a square image, with ratios near 1, no try fails: area, log ratio and position are uniform."""
    N, side = 20000, 4000
    H = W = np.full(N, side)
    crop = RandomResizedCrop((0.2, 0.6), (0.8, 1.25))
    top, left, height, width = crop.boxes(H, W, Generator(3).uniform((22, N), np.float64))
    samples = {
        "area": (height * width / side**2 - 0.2) / 0.4,
        "ratio": (np.log(width / height) - np.log(0.8)) / np.log(1.25 / 0.8),
        "top": top / (side - height),
        "left": left / (side - width),
    }
    for name, x in samples.items():
        counts, _ = np.histogram(x, bins=20, range=(0, 1))
        assert counts.sum() > 0.998 * N, name  # rounding to pixels crosses the ends of the range
        assert ((counts - N / 20) ** 2 / (N / 20)).sum() < 50, name  # χ² of 19 degrees of freedom: p < 1e-4
    correlation = np.corrcoef(list(samples.values())) - np.eye(4)
    assert abs(correlation).max() < 0.03


def test_photos_are_selected_without_a_copy():
    all_photos = photos(SIZES)
    some = all_photos[np.array([3, 0, 3])]
    assert len(some) == 3 and some.pixels is all_photos.pixels
    for n, source in enumerate([3, 0, 3]):
        np.testing.assert_array_equal(some.image(n), all_photos.image(source))
    assert [all_photos[:2].image(n).shape for n in range(2)] == [(20, 30, 3), (9, 9, 3)]


def test_whole_image_of_the_input_size_is_unchanged():
    same = photos([(8, 8)] * 3)
    crops = RandomResizedCrop((1.0, 1.0), (1.0, 1.0))(same, Generator(0))
    np.testing.assert_array_equal(crops, [same.image(n).transpose(2, 0, 1) for n in range(3)])


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("parts", [2, 3])
def test_part_of_a_batch_has_the_crops_of_the_whole_batch(parts, mirrored):
    crop, batch = RandomResizedCrop((0.1, 1.0)), photos(SIZES)
    whole, drawn = crop(batch, Generator(5)), []
    for rows in split(len(batch), parts, mirrored=mirrored):
        generator = Generator(5)
        with generator.drawing(rows):
            np.testing.assert_array_equal(crop(batch[rows.index], generator), whole[rows.index])
        drawn.append(generator.draws)
    assert set(drawn) == {1}
    again = crop(batch, Generator(6))
    assert (again != whole).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(("name", "share"), [("bilinear", 0), ("bicubic", 1), ("random", 0.5)])
def test_filter_of_an_image(name, share):
    """A filter is sampled for each image; the boxes are the same."""
    batch = photos([(30, 30)] * 200)
    both = [
        RandomResizedCrop((0.3, 1.0), interpolation=filter)(batch, Generator(1)) for filter in ("bilinear", "bicubic")
    ]
    found = RandomResizedCrop((0.3, 1.0), interpolation=name)(batch, Generator(1))
    equal = [(found == x).all(axis=(1, 2, 3)) for x in both]
    assert (equal[0] | equal[1]).all() and abs(equal[1].mean() - share) < 0.1


def test_resumed_run_equals_uninterrupted_run(dataset, tmp_path):
    """With all augmentations, and batches in two threads."""
    settings = replace(parse(["--epochs", "2", "--batch-size", "20", "--threads", "2"]), scale=(0.3, 1.0), **EVERYTHING)
    expected = finish(trainer_of(dataset, settings))
    info, path = info_of(dataset, settings), tmp_path / "resume.npz"
    interrupted(trainer_of(dataset, settings), 4, path, info)
    resumed = trainer_of(dataset, settings)
    history = resume.load(path, resumed, info)
    rows, weights = finish(resumed, history)
    assert rows == expected[0]
    for name, x in expected[1].items():
        np.testing.assert_array_equal(weights[name].data, x.data, err_msg=name)


def test_step_trains_on_crops(dataset):
    trainer = trainer_of(dataset, replace(parse(["--batch-size", "20"]), scale=(0.3, 1.0)), Small)
    before = trainer.model.head.weight.data.copy()
    trainer.train_epoch("")
    assert (trainer.model.head.weight.data != before).any()
    assert trainer.step.transform.augment.scale == (0.3, 1.0)


def test_crops_on_the_device_are_those_of_the_cpu(dataset, device):
    """Crops are made on the CPU and copied to the device; all other images stay there."""
    batches = []
    for where in ("cpu", device):
        settings = replace(parse(["--batch-size", "20", "--threads", "1"]), scale=(0.3, 1.0), device=where)
        step = trainer_of(dataset, settings).step
        index = to_device(np.array([5, 3, 3, 59]), where)
        images, labels = step.transform(*step.data.take(index))
        assert device_of(images) == device_of(labels) == device_of(index)
        step(index)
        batches.append((to_device(images, "cpu"), to_device(labels, "cpu"), step.sums.means(4)))
    for found, expected in zip(batches[1], batches[0], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_scale_replaces_shifted_crops_and_graphs():
    settings = parse(["--dataset", "folder", "--scale", "0.35", "1"])
    assert settings.scale == (0.35, 1.0) and settings.crop_padding == 0 and settings.random_crop
    assert parse(["--dataset", "folder", "--scale", "0.35", "1", "--crop-padding", "2"]).crop_padding == 2
    assert parse(["--dataset", "folder", "--scale", "0.35", "1", "--recipe", "fast"]).crop_padding == 0
    assert parse(["--dataset", "folder", "--scale", "1", "1"]).crop_padding == 4
    assert not parse(["--dataset", "folder", "--scale", "0.35", "1", "--no-aug"]).random_crop
    on_gpu = parse(["--dataset", "folder", "--scale", "0.35", "1", "--device", "cuda"])
    assert not on_gpu.graph and on_gpu.why_no_graph == "--scale crops images on the host"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scale", "0.5", "0.2"], "argument --scale: must be a minimum and a maximum, got 0.5 0.2"),
        (["--scale", "0.5", "1.5"], "argument --scale: must be a number above 0 and at most 1, got '1.5'"),
        (["--scale", "0.5"], "argument --scale: expected 2 arguments"),
        (["--ratio", "0", "1"], "argument --ratio: must be a number above 0, got '0'"),
    ],
)
def test_ranges_are_checked(flags, message):
    with pytest.raises(InputError, match=message):
        parse(flags)


def test_training_images_are_kept_at_twice_the_size(tmp_path):
    """The shorter side is at most 2 * 16 pixels; smaller images are unchanged. Test images are cropped as ever."""
    for place in ("train", "val"):
        paint(tmp_path / place / "a" / "1.png", 1, (100, 50))
        small = paint(tmp_path / place / "b" / "1.png", 2, (20, 24))
    flags = ["--dataset", "folder", "--data-dir", str(tmp_path), "--img-size", "16", "--no-cache"]
    data, plain = create_dataset(parse([*flags, "--scale", "0.5", "1"])), create_dataset(parse(flags))
    assert data.train.images.shapes.tolist() == [[64, 32, 3], [20, 24, 3]] and data.train.shape == (3, 16, 16)
    np.testing.assert_array_equal(data.train.images.image(1).transpose(2, 0, 1), small)
    np.testing.assert_array_equal(data.test.images, plain.test.images)
    pixels = data.train.images.pixels.reshape(-1, 3) / 255
    np.testing.assert_allclose(data.mean, pixels.mean(axis=0))
    np.testing.assert_allclose(data.std, pixels.std(axis=0))
