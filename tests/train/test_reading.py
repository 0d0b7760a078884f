"""Image files read in threads and from the cache: same result, never an outdated or damaged one."""

import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from minigrad import serialize
from tests.train.command import train as run
from tests.train.test_folder import album, paint
from train.data import folder, reading

Image = pytest.importorskip("PIL.Image")
OPTIONS = folder.Options(img_size=16, cache=True, skip_bad_images=True)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder of images, in a current folder of its own for the cache."""
    monkeypatch.chdir(tmp_path)
    album(tmp_path / "album", ({"a": 3, "b": 3}, {"a": 1, "b": 1}))
    (tmp_path / "album/train/a/001.png").write_bytes(b"no image at all")
    return tmp_path / "album"


def arrays(data):
    return [x.tolist() for x in (*data.train.arrays(), *data.test.arrays())], data.bad_images, data.mean


def forbid_reading(monkeypatch):
    """From now on, decoding raises an error; bad files are still tried."""

    def refuse(path, *args):
        if path.name != "001.png":
            raise AssertionError(f"{path} is decoded")
        raise ValueError(f"{path} is bad")

    monkeypatch.setattr(reading.images, "decode", refuse)


@pytest.mark.parametrize("crops", [False, True])
def test_cache_gives_what_was_read(crops, root, monkeypatch, capsys):
    options = replace(OPTIONS, random_crop=crops)
    read, plain = arrays(folder.load(root, options)), arrays(folder.load(root, replace(options, cache=False)))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all(line.endswith("MiB (--no-cache writes none)") for line in said)
    forbid_reading(monkeypatch)
    cached = arrays(folder.load(root, options))
    assert read == plain and cached[0] == read[0] and cached[2] == read[2]
    assert cached[1] == (f"{root / 'train/a/001.png'} is bad",) and capsys.readouterr().out == ""


def touch(root):
    os.utime(root / "train/a/000.png", ns=(1, 1))


def rewrite(root):
    paint(root / "train/a/000.png", 99)


def rename(root):
    (root / "train/a/000.png").rename(root / "train/a/0000.png")


def add(root):
    paint(root / "train/b/9.png", 9)


def repair(root):
    paint(root / "train/a/001.png", 5)


@pytest.mark.parametrize("change", [touch, rewrite, rename, add, repair])
def test_changed_files_are_read_anew(change, root):
    folder.load(root, OPTIONS)
    change(root)
    assert arrays(folder.load(root, OPTIONS)) == arrays(folder.load(root, replace(OPTIONS, cache=False)))
    assert len(list(reading.CACHE.iterdir())) == 3  # two splits, and the changed split


@pytest.mark.parametrize("changed", [{"img_size": 8}, {"fast_jpeg": True}, {"random_crop": True}])
def test_options_have_their_own_cache_files(changed, root):
    folder.load(root, OPTIONS)
    first = set(reading.CACHE.iterdir())
    folder.load(root, replace(OPTIONS, **changed))
    assert len(first) == 2 and len(set(reading.CACHE.iterdir()) - first) == (1 if "random_crop" in changed else 2)


def test_bad_file_that_became_readable_is_read(root):
    """Its size and time may be the same, as when permissions changed: the name of the cache file is the same."""
    files = sorted((root / "train/a").iterdir())

    def decode(path):
        return reading.images.decode(path, 3, lambda image: image)

    reading.read(files, decode, "", reading.CACHE / "x.npz")
    paint(files[1], 7)
    assert len(reading.read(files, decode, "", reading.CACHE / "x.npz").shapes) == 3


def truncated(path):
    path.write_bytes(path.read_bytes()[:-200])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in the pixels: the checksum of the archive differs
    path.write_bytes(content)


def shapes_of_another(path):
    there, _ = serialize.load(path)
    serialize.save(path, {**there, "shapes": there["shapes"] + 1})


def object_array(path):
    np.savez(path, pixels=np.array([{}], dtype=object))


@pytest.mark.parametrize("damage", [truncated, flipped, shapes_of_another, object_array])
def test_damaged_cache_is_read_anew(damage, root, capsys):
    expected = arrays(folder.load(root, OPTIONS))
    for path in reading.CACHE.iterdir():
        damage(path)
    capsys.readouterr()
    assert arrays(folder.load(root, OPTIONS)) == expected
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 2 and all("read again" in line for line in err.splitlines())
    assert len(out.splitlines()) == 2  # written again
    assert arrays(folder.load(root, OPTIONS)) == expected and capsys.readouterr().err == ""


def test_cache_that_cannot_be_written_is_reported(root, monkeypatch, capsys):
    monkeypatch.setattr(reading, "CACHE", root / "train/a/000.png/cache")
    assert len(folder.load(root, OPTIONS).train) == 5
    assert capsys.readouterr().err.count("Not a directory") == 2


def test_least_recently_used_files_are_deleted(root, monkeypatch):
    folder.load(root, OPTIONS)
    first = set(reading.CACHE.iterdir())
    folder.load(root, replace(OPTIONS, img_size=8))
    for path in reading.CACHE.iterdir():
        os.utime(path, (1, 1) if path in first else (2, 2))
    folder.load(root, OPTIONS)  # used again: the files of 8 x 8 are older now
    monkeypatch.setattr(reading, "_LIMIT", sum(path.stat().st_size for path in first))
    reading._delete_oldest()
    assert set(reading.CACHE.iterdir()) == first


def test_images_beyond_the_limit_have_no_cache(root, monkeypatch, capsys):
    monkeypatch.setattr(reading, "_LIMIT", 4 * 16 * 16 * 3)
    folder.load(root, OPTIONS)  # five training images, two test images
    assert capsys.readouterr().err == "cache    none: the images are larger than 0.0 MiB\n"
    assert len(list(reading.CACHE.iterdir())) == 1


def test_order_is_that_of_the_files(monkeypatch):
    """Later items end first; results and the first error are in order."""
    monkeypatch.setattr(reading, "_cores", lambda: 4)

    def slow(i):
        time.sleep(0.02 * (4 - i % 4))
        return i

    assert list(reading.in_threads(slow, range(12))) == list(range(12))


def test_no_item_is_begun_after_an_error(monkeypatch):
    monkeypatch.setattr(reading, "_cores", lambda: 2)
    begun = []

    def work(i):
        begun.append(i)
        time.sleep(0.01)
        if i == 3:
            raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        list(reading.in_threads(work, range(1000)))
    assert len(begun) < 20 and threading.active_count() == threads


def test_interrupt_while_items_are_queued_ends_at_once(monkeypatch):
    monkeypatch.setattr(reading, "_cores", lambda: 2)
    submit, queued, begun = reading.ThreadPoolExecutor.submit, [], []

    def interrupted(*args):
        queued.append(args)
        if len(queued) == 500:
            raise KeyboardInterrupt
        return submit(*args)

    def work(i):
        begun.append(i)
        time.sleep(0.005)

    monkeypatch.setattr(reading.ThreadPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(reading.in_threads(work, range(1000)))
    assert len(begun) < 250


def test_bad_images_are_listed_in_the_folder_of_the_run(root):
    flags = ["--dataset", "folder", "--data-dir", "album", "--epochs", 1, "--img-size", 16, "--output", "out"]
    result = run(*flags, cwd=root.parent)
    assert result.returncode == 2
    assert result.stderr == (
        "python -m train: album/train/a/001.png is not an image in a supported format (PNG, JPEG, WEBP, BMP, GIF, "
        "TIFF, PPM): repair or delete it, or add --skip-bad-images\n"
    )
    result = run(*flags, "--skip-bad-images", cwd=root.parent)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "\nskipped  1 image file that cannot be read, listed in out/bad_images.txt\n" in result.stdout
    (line,) = (root.parent / "out/bad_images.txt").read_text().splitlines()
    assert line.startswith("album/train/a/001.png is not an image")
