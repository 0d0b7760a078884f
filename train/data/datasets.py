"""L7: load a dataset by name, with --download."""

from pathlib import Path

from train.config.errors import InputError
from train.config.flags import option
from train.config.settings import FLAGS
from train.data import cifar, folder, shapes
from train.data.dataset import Dataset
from train.data.download import download as fetch


def load(
    name: str,
    data_dir: str,
    *,
    download: bool = False,
    options: folder.Options,
    train: int | None = None,
    test: int | None = None,
) -> Dataset:
    """The dataset of this name, with its first `train` and `test` images; None means all.

    Args:
        data_dir: the value of --data-dir.
        download: fetch a missing dataset, for CIFAR.
        options: for a folder of images.

    Raises:
        InputError: an argument is not for this dataset, or a file is missing or damaged.
    """
    path = Path(data_dir).expanduser()
    if name == "folder":
        if download:
            raise InputError("--download is for CIFAR: a folder of images has no address to download from")
        return folder.load(path, options, train, test)
    check_not_folder(name, options)
    if name == "shapes":
        for flag, is_given in (("--download", download), ("--data-dir", data_dir != FLAGS["data_dir"].default)):
            if is_given:
                raise InputError(f"{flag} is for other datasets: shapes are drawn; --dataset cifar10, for example")
        return shapes.load(min(train or shapes.TRAIN, shapes.TRAIN), min(test or shapes.TEST, shapes.TEST))
    source = cifar.SOURCES[name]
    if download and cifar.find(source, path) is None:
        print(f"download {source.url} to {path}", flush=True)
        fetch(source.url, path / source.archive, source.md5)
    return cifar.load(source, path).first(train, test)


def check_not_folder(name: str, options: folder.Options) -> None:
    """Refuse the flags of folders for the dataset `name`."""
    if options.img_size != 32:
        raise InputError(f"--img-size is for --dataset folder: the images of {name} are 32 x 32")
    if options.random_crop:
        raise InputError(f"--scale is for --dataset folder: the images of {name} are 32 x 32; try --crop-padding")
    for setting in ("val_split", "fast_jpeg", "skip_bad_images"):
        if getattr(options, setting):
            raise InputError(f"{option(setting)} is for --dataset folder: {name} has no image files")


def load_test(name: str, data_dir: str, *, download: bool, options: folder.Options, test: int | None) -> Dataset:
    """The test images, for evaluation: as `load`, but a folder of images needs no training images."""
    if name == "folder" and not download:
        return folder.load_test(Path(data_dir).expanduser(), options, test)
    return load(name, data_dir, download=download, options=folder.Options(), train=1, test=test)
