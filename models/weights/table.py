"""L6: the published weights: `hub.csv`, a line for each file, under timm's names; and the files in `models/bundled/`.

A name is that of the model, a dot, and timm's tag of the training: `vit_tiny_patch16_224.augreg_in21k_ft_in1k` was
trained with the augmentation of the paper AugReg on ImageNet-21k, then fine-tuned on ImageNet-1k; the bundled
`vit_nano_cifar.shapes`, on the dataset `shapes`. Of the files of one model, the first is the default.

`python -m tests.reference.hub_table` writes `hub.csv` from the installed timm.
"""

import csv
import difflib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from minigrad import serialize
from models.registry import Patterns, matching, model_arguments, model_class

Config = dict[str, Any]
"""How a file of weights was trained, under timm's keys: `architecture`, `tag`, `hf_hub_id` or, of bundled weights,
`file`, a path; `license`, `num_classes`, `input_size` (C, H, W), `mean`, `std`, `crop_pct`, `crop_mode`,
`interpolation`; if known, `label_names` and `label_descriptions`."""

BUNDLED = Path(__file__).parents[1] / "bundled"
"""The folder with the weights in this package, checkpoints of `python -m train`, and with images for them."""

COLUMNS = (
    *("name", "hf_hub_id", "license", "num_classes", "input_size"),
    *("mean", "std", "crop_pct", "crop_mode", "interpolation"),
)

TORCHVISION = {
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
    "vit_h_14": "vit_huge_patch14_224",
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
    "swin_b": "swin_base_patch4_window7_224",
    "swin_v2_t": "swinv2_tiny_window8_256",
    "swin_v2_s": "swinv2_small_window8_256",
    "swin_v2_b": "swinv2_base_window8_256",
}
"""torchvision's names of models of the same architecture. (Its names of ConvNeXt are timm's.)"""


def list_pretrained(filter: Patterns = "") -> list[str]:
    """The names of the published weights that match a pattern such as `swin_*`, or one of several, sorted."""
    return matching(_published(), filter)


def find(name: str) -> tuple[str, Config]:
    """The model of this name, and the configuration of its weights; empty: none are published.

    Args:
        name: a registered model, whose default weights are meant; a model with timm's tag; or a torchvision name.

    Raises:
        ValueError: there is no such model or tag.
    """
    name = TORCHVISION.get(name, name)
    model, _, tag = name.partition(".")
    model_class(model)  # raises an error that suggests similar names
    if tag and name not in _published():
        raise ValueError(f"there are no weights {name!r}; {tags_of(model)}")
    if tag:
        return model, _published()[name]
    trunk = model.removesuffix("_in22k")
    classes = model_arguments(model)["num_classes"] if trunk != model else None
    configs = (config for config in _published().values() if config["architecture"] == trunk)
    return model, next((c for c in configs if classes in (None, c["num_classes"])), {})


def origin(config: Config) -> str:
    """Where a file of weights is from: the page of its repository, or its path in this package."""
    return config["file"] if "file" in config else f"https://huggingface.co/{config['hf_hub_id']}"


def tags_of(model: str) -> str:
    """A clause with the published weights of a model; without any, with those of the model with a similar name."""
    by_model: dict[str, list[str]] = {}
    for name, config in _published().items():
        by_model.setdefault(config["architecture"], []).append(name)
    if model in by_model:
        return f"the weights of {model} are {', '.join(by_model[model])}"
    close = difflib.get_close_matches(model, by_model, n=1)
    start = f"there are no published weights of {model}"
    return f"{start}; {tags_of(close[0])}" if close else start


@cache
def _published() -> dict[str, Config]:
    """The lines of `hub.csv` and the bundled files, by name."""
    text = resources.files("models.weights").joinpath("hub.csv").read_text()
    lines = {line["name"]: _config(line) for line in csv.DictReader(text.splitlines())}
    return lines | {path.stem: _bundled(path) for path in sorted(BUNDLED.glob("*.npz"))}


def _config(line: dict[str, str]) -> Config:
    architecture, _, tag = line["name"].partition(".")
    return {
        "architecture": architecture,
        "tag": tag,
        **{key: line[key] for key in ("hf_hub_id", "license", "crop_mode", "interpolation")},
        "num_classes": int(line["num_classes"]),
        "input_size": tuple(map(int, line["input_size"].split())),
        "mean": tuple(map(float, line["mean"].split())),
        "std": tuple(map(float, line["std"].split())),
        "crop_pct": float(line["crop_pct"]),
    }


def _bundled(path: Path) -> Config:
    architecture, _, tag = path.stem.partition(".")
    metadata = serialize.load_metadata(path)
    return {
        "architecture": architecture,
        "tag": tag,
        "file": str(path),
        "license": "mit",
        "num_classes": len(metadata["classes"]),
        "label_names": metadata["classes"],
        "input_size": (len(metadata["mean"]), *(2 * (model_arguments(architecture)["img_size"],))),
        "mean": tuple(metadata["mean"]),
        "std": tuple(metadata["std"]),
        "crop_pct": 1.0,
        "crop_mode": "center",
        "interpolation": "bicubic",
    }
