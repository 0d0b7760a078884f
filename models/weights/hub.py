"""L6: files of the Hugging Face Hub, through the library huggingface_hub: downloaded once, then read from its cache.

Only safetensors and JSON files are downloaded: a pickle (`pytorch_model.bin`) could run code. Each failure is one
`HubError`, which names the file to download by hand.
"""

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

from models.model import ImageModel
from models.weights.load import Loaded, MisfitError, load_weights
from models.weights.table import Config

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class HubError(RuntimeError):
    """A file of the Hub cannot be had or used; the message says in one line which, why, and what to do."""


class UnreachableError(HubError):
    """The Hub does not answer, or HF_HUB_OFFLINE is set, and the file is not in the cache."""


def load(model: ImageModel, config: Config) -> Loaded:
    """Load the weights that a configuration describes into a model; if it has other classes, all but the head.

    Raises:
        HubError: the file cannot be had, is damaged, or does not fit the model.
    """
    repository = config["hf_hub_id"]
    path = fetch(repository, WEIGHTS)
    try:
        return load_weights(model, path, head=model.num_classes == config["num_classes"] > 0, resize=True)
    except MisfitError as error:
        raise HubError(
            f"{WEIGHTS} of {_page(repository)} does not fit {config['architecture']}: {error.in_one_line()}"
        ) from None
    except ValueError as error:
        raise HubError(_damaged(repository, path, error)) from None


def read_config(repository: str) -> tuple[Config, dict[str, Any]]:
    """The configuration in a repository of timm's form, and further arguments of its model.

    Raises:
        HubError: the file cannot be had, is damaged, or is not of timm's form.
    """
    path = fetch(repository, CONFIG)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HubError(_damaged(repository, path, error)) from None
    if not isinstance(content, dict) or not isinstance(content.get("architecture"), str):
        raise HubError(
            f"{CONFIG} of {_page(repository)} is not timm's: it names no architecture; if the model is one of "
            f"python -m models, {_by_hand(repository, WEIGHTS)}"
        )
    own, arguments = content.get("pretrained_cfg", content), content.get("model_args", {})  # older files have one level
    if not isinstance(own, dict) or not isinstance(arguments, dict):
        raise HubError(f"{CONFIG} of {_page(repository)}: pretrained_cfg and model_args must be dicts")
    config = _DEFAULTS | own | {key: content[key] for key in _AT_THE_TOP if key in content}
    config |= {"architecture": content["architecture"], "hf_hub_id": repository}
    config |= {key: tuple(config[key]) for key in ("input_size", "mean", "std") if isinstance(config[key], list)}
    if problem := _problem(config):
        raise HubError(f"{CONFIG} of {_page(repository)}: {problem}")
    return config, arguments


_AT_THE_TOP = ("num_classes", "label_names", "label_descriptions")
_DEFAULTS: Config = {
    "tag": "",
    "license": "unknown",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "crop_mode": "center",
    "interpolation": "bicubic",
}
"""timm's, for what a file leaves out."""


def _problem(config: Config) -> str:
    """What is wrong with a configuration; empty: nothing."""
    size, mean, std = config["input_size"], config["mean"], config["std"]
    checks = {
        "num_classes": _numbers([config["num_classes"]], int, at_least=0),
        "input_size": _numbers(size, int, at_least=1, length=3),
        "mean": _numbers(mean, float),
        "std": _numbers(std, float, at_least=1e-9),
        "crop_pct": _numbers([config["crop_pct"]], float, at_least=1e-3),
    }
    for key, holds in checks.items():
        if not holds:
            return f"{key} cannot be {config[key]!r}"
    return "" if size[0] == len(mean) == len(std) else "input_size, mean and std have different numbers of channels"


def _numbers(values: Any, kind: type, at_least: float = -inf, length: int | None = None) -> bool:
    """Whether the values are finite numbers of this kind (an integer is a float too), and how many if `length`."""
    kinds = (int, float) if kind is float else (kind,)
    return (
        isinstance(values, Sequence)
        and all(type(x) in kinds and at_least <= x < inf for x in values)
        and length in (None, len(values))
    )


# Class names --------------------------------------------------------------------------------------------------------

LABELS = {
    1000: "imagenet-1k-id2label.json",
    21841: "imagenet-22k-id2label.json",
    21843: "imagenet-22k-id2label.json",
}
"""ImageNet's class names, by their number, in the dataset repository `huggingface/label-files`."""

_IN_21K_ALONE = (9205, 15027)
"""The two of the 21,843 classes of ImageNet-21k that the 21,841 of ImageNet-22k leave out."""


def class_names(config: Mapping[str, Any]) -> list[str]:
    """The names of the classes: those in the repository; else ImageNet's, by their number; else their indices."""
    names = _names_in(config)
    for source in (_of_repository, _of_imagenet):
        if names:
            break
        try:
            names = source(config)
        except UnreachableError:  # a second file is not there either
            break
        except (HubError, ValueError, AttributeError):  # the file is missing or damaged
            pass
    classes = config["num_classes"]
    return _short(names) if len(names) == classes else [str(i) for i in range(classes)]


def _of_repository(config: Mapping[str, Any]) -> list[str]:
    return _names_in(read_config(config["hf_hub_id"])[0])


def _of_imagenet(config: Mapping[str, Any]) -> list[str]:
    """The names of the 1,000 classes of ImageNet-1k, or the 21,841 or 21,843 of ImageNet-22k or -21k; else none."""
    classes = config["num_classes"]
    if classes not in LABELS:
        return []
    path = fetch("huggingface/label-files", LABELS[classes], kind="dataset")
    by_index = {int(i): str(name) for i, name in json.loads(path.read_text(encoding="utf-8")).items()}
    left_out = _IN_21K_ALONE if classes == 21841 else ()
    return [by_index[i] for i in sorted(by_index) if i not in left_out]


def _names_in(config: Mapping[str, Any]) -> list[str]:
    """The class names in a configuration, with timm's two keys; empty: there are none."""
    names, texts = config.get("label_names"), config.get("label_descriptions")
    if not isinstance(names, list):
        return []
    return [str(texts[name]) if isinstance(texts, Mapping) and name in texts else str(name) for name in names]


def _short(names: Sequence[str]) -> list[str]:
    """`tench, Tinca tinca` -> `tench`, unless another class would have the same name."""
    first = [name.partition(",")[0] for name in names]
    count = Counter(first)
    return [short if count[short] == 1 else name for short, name in zip(first, names, strict=True)]


# Download -----------------------------------------------------------------------------------------------------------


def fetch(repository: str, file: str, kind: str = "model") -> Path:
    """The path of a file in the cache of huggingface_hub, downloaded if it is not there.

    Args:
        repository: `owner/name`, or `owner/name@revision`.
        file: the name of the file.
        kind: `model` or `dataset`.

    Raises:
        HubError: huggingface_hub is not installed, or the file can be neither downloaded nor found in the cache.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise HubError(
            f"{file} of {_page(repository)} is downloaded by huggingface_hub, which is not installed: "
            f"pip install huggingface_hub; or {_by_hand(repository, file)}"
        ) from None
    name, _, revision = repository.partition("@")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Not enough free disk space")
            return Path(huggingface_hub.hf_hub_download(name, file, revision=revision or None, repo_type=kind))
    except Exception as error:  # of huggingface_hub, of its HTTP library, of the operating system
        unreachable = type(error).__name__ == "LocalEntryNotFoundError"
        kind_of_error = UnreachableError if unreachable else HubError
        reason = _cause(error, repository, file)
        raise kind_of_error(f"{file} of {_page(repository)} cannot be downloaded: {reason}") from None


def _cause(error: Exception, repository: str, file: str) -> str:
    """Why a download failed, and what to do."""
    from huggingface_hub import HfApi, constants, errors

    by_hand = _by_hand(repository, file)
    if isinstance(error, errors.GatedRepoError):
        return f"the repository is gated: accept its conditions there, then log in by `hf auth login`; or {by_hand}"
    unauthorized = isinstance(error, errors.HfHubHTTPError) and error.response.status_code == 401
    if isinstance(error, errors.RepositoryNotFoundError) or unauthorized:
        return "there is no such repository, or it is private and needs `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no revision {repository.partition('@')[2]!r}"
    if isinstance(error, errors.HFValidationError):
        return "the repository must be named owner/name"
    cache = constants.HF_HUB_CACHE
    if isinstance(error, errors.LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return f"HF_HUB_OFFLINE is set, and the file is not in the cache {cache}; unset it, or {by_hand}"
        return f"no answer from the Hub{_detail(error.__cause__)}, and the file is not in the cache {cache}; {by_hand}"
    if isinstance(error, errors.EntryNotFoundError):
        if file == WEIGHTS:
            with suppress(Exception):
                if HfApi().file_exists(repository.partition("@")[0], "pytorch_model.bin"):
                    return (
                        "the repository has only pytorch_model.bin, a pickle; pickles can run code and are not "
                        f"downloaded; if you trust its owner, {_by_hand(repository, 'pytorch_model.bin')}"
                    )
        return "the repository has no such file"
    if isinstance(error, Warning):
        return f"not enough disk space{_detail(error)}; free some in {cache}, or set HF_HOME to another folder"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror} ({error.filename or cache}); HF_HOME sets another folder for the cache"
    return f"the download failed{_detail(error)}; try again, or {by_hand}"


def _detail(error: BaseException | None) -> str:
    """The message of an error in brackets, in one line."""
    text = " ".join(str(error or "").split()) or type(error).__name__
    return f" ({text[:200]})" if error else ""


def _damaged(repository: str, path: Path, error: Exception) -> str:
    detail = " ".join(str(error).split()).replace(str(path), path.name)
    return (
        f"{path.name} of {_page(repository)} is damaged in the cache ({detail}): delete {path.resolve()}, and the "
        "next call downloads the file again"
    )


def _page(repository: str) -> str:
    return f"https://huggingface.co/{repository.partition('@')[0]}"


def _by_hand(repository: str, file: str) -> str:
    """The advice to download a file of weights by hand, and how to load it."""
    name, _, revision = repository.partition("@")
    advice = f"download https://huggingface.co/{name}/resolve/{revision or 'main'}/{file} by hand"
    return advice if file == CONFIG else f"{advice} and call models.load_weights(model, {file!r})"
