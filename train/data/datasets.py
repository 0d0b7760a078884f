"""L7: load a dataset by name, with --download."""

from pathlib import Path

from train.data import cifar, folder, shapes
from train.data.dataset import Dataset
from train.data.download import download
from train.config.errors import InputError
from train.config.settings import COMMON, Settings


def load(settings: Settings) -> Dataset:
    """The dataset of a run, with its first --train-num-samples and --val-num-samples images."""
    train, test = settings.train_num_samples, settings.val_num_samples
    if settings.dataset == "folder":
        if settings.download:
            raise InputError("--download is for CIFAR: there is no telling where other images would come from")
        return folder.load(Path(settings.data_dir).expanduser(), settings.img_size, train, test)
    if settings.img_size != 32:
        raise InputError(f"--img-size is for --dataset folder: the images of {settings.dataset} are 32 x 32")
    if settings.dataset == "shapes":
        for flag, said in (("--download", settings.download), ("--data-dir", settings.data_dir != COMMON["data_dir"])):
            if said:
                raise InputError(f"{flag} is for other datasets: shapes are drawn; --dataset cifar10, for example")
        return shapes.load(min(train or shapes.TRAIN, shapes.TRAIN), min(test or shapes.TEST, shapes.TEST))
    source, data_dir = cifar.SOURCES[settings.dataset], Path(settings.data_dir).expanduser()
    if settings.download and cifar.find(source, data_dir) is None:
        print(f"download {source.url} to {data_dir}", flush=True)
        download(source.url, data_dir / source.archive, source.md5)
    return cifar.load(source, data_dir).first(train, test)
