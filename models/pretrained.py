"""L6: `create_model`, by a name of this project, timm or torchvision, or of a repository of the Hugging Face Hub.

Published weights are files of the Hub, or bundled files of this package, which need neither network nor library.
"""

from collections.abc import Sequence
from typing import Any, Literal, overload

from models import registry
from models.features import FeatureNet
from models.images import Crop
from models.model import ImageModel
from models.registry import Patterns
from models.weights import hub, table
from models.weights.hub import HubError
from models.weights.load import Loaded, load_weights

HUB_PREFIXES = ("hf-hub:", "hf_hub:")


def list_models(filter: Patterns = "", *, pretrained: bool = False, exclude_filters: Patterns = "") -> list[str]:
    """The names of models for `create_model`, sorted.

    Args:
        filter: a pattern such as `vit_*_cifar`, or several, of which one must match; empty: all models.
        pretrained: list published weights, with timm's tags, as `list_pretrained` does.
        exclude_filters: a pattern, or several, that must not match.
    """
    return registry.matching(table.list_pretrained() if pretrained else registry.registered(), filter, exclude_filters)


@overload
def create_model(
    name: str, pretrained: bool = False, *, features_only: Literal[False] = False, **overrides: Any
) -> ImageModel: ...
@overload
def create_model(
    name: str, pretrained: bool = False, *, features_only: Literal[True],
    out_indices: Sequence[int] | int | None = None, **overrides: Any,
) -> FeatureNet: ...  # fmt: skip
def create_model(
    name: str,
    pretrained: bool = False,
    *,
    features_only: bool = False,
    out_indices: Sequence[int] | int | None = None,
    **overrides: Any,
) -> ImageModel | FeatureNet:
    """A model by name: newly initialized, or with published weights, bundled or from the Hugging Face Hub.

    Args:
        name: a name of `list_models()`; one of `list_pretrained()`, with timm's tag, such as
            `vit_tiny_patch16_224.augreg_in21k_ft_in1k`; one of torchvision, such as `vit_b_16`, for the same
            architecture; or `hf-hub:owner/name`, a repository of timm's form.
        pretrained: whether to load weights: those of the tag, or without one the model's default weights, which are
            timm's (for torchvision's names too) or, of `list_pretrained("*_cifar.*")`, bundled. A file of the Hub is
            downloaded once. Position embeddings and relative position bias tables are resampled to `img_size` and
            `window_size`.
        features_only: whether to return a `FeatureNet`: the model without its head, which returns feature maps.
        out_indices: which feature maps.
        overrides: any argument of the model's class, such as `num_classes`, `img_size`, `in_chans` or `drop_path_rate`.
            If `num_classes` is not that of the weights, the head is newly initialized.

    Returns:
        The model; its `pretrained_cfg` has the normalization, crop and licence of the weights, under timm's keys.

    Raises:
        ValueError: there is no model or tag of this name, or no published weights, or they have other channels.
        TypeError: the class of the model has no argument of this name.
        HubError: the weights cannot be downloaded, are damaged, or do not fit.
    """
    model, config, arguments = _find(name)
    if pretrained and not config:
        raise ValueError(table.tags_of(model))
    if pretrained or "." in name or name.startswith(HUB_PREFIXES):  # not only a model is named, but its weights
        channels, *size = config["input_size"]
        arguments = {"num_classes": config["num_classes"], "in_chans": channels, "img_size": tuple(size)} | arguments
    arguments |= {"num_classes": 0} | overrides if features_only else overrides
    if pretrained:
        _check_channels(arguments["in_chans"], config)
    created = registry.create_model(model, **arguments)
    created.pretrained_cfg = config
    if pretrained:
        _load_weights(created, config)
    return FeatureNet(created, out_indices) if features_only else created


def load_into(model: ImageModel, name: str, classes: Sequence[str]) -> tuple[Loaded, table.Config]:
    """Load the published weights of a name of `list_pretrained()`, or of a model, into this model, on the CPU. The head
    is not loaded if the number of classes or, as far as known without a download, their names differ from `classes`.

    Raises:
        ValueError, HubError: as for `create_model`.
    """
    found, config = table.find(name)
    if not config:
        raise ValueError(table.tags_of(found))
    _check_channels(model.in_chans, config)
    return _load_weights(model, config, classes), config


def _load_weights(model: ImageModel, config: table.Config, classes: Sequence[str] | None = None) -> Loaded:
    """Load the weights that a configuration describes into a model; if it has other classes, all but the head."""
    if "file" not in config:
        return hub.load(model, config)
    same = model.num_classes == config["num_classes"] and (classes is None or [*classes] == config["label_names"])
    return load_weights(model, config["file"], head=same, resize=True)


def _check_channels(in_chans: int, config: table.Config) -> None:
    """Raise ValueError unless the weights are for images of these channels."""
    if in_chans != config["input_size"][0]:
        raise ValueError(
            f"the weights of {table.origin(config)} are for images of {config['input_size'][0]} channels, not "
            f"{in_chans}"
        )


def load(name: str) -> tuple[ImageModel, dict[str, Any]]:
    """A model with its published weights in evaluation mode, and metadata as of `models.weights.checkpoint.load`: the
    class names, mean and std; and `crop`, how its images are resized.

    Raises:
        ValueError, HubError: as for `create_model`; or the weights have no classifier.
    """
    model = create_model(name, pretrained=True)
    config = model.pretrained_cfg
    if not model.num_classes:
        raise ValueError(f"the weights of {name} have no classifier; {table.tags_of(config['architecture'])}")
    crop = Crop(config["crop_pct"], config["crop_mode"], config["interpolation"])
    metadata = {"model": {"name": name}, "classes": hub.class_names(config), "crop": crop}
    return model.eval(), metadata | {"mean": config["mean"], "std": config["std"]}


def architecture(name: str) -> str:
    """The registered model of a name with timm's tag, or of a torchvision name."""
    return table.find(name)[0]


def _find(name: str) -> tuple[str, table.Config, dict[str, Any]]:
    """The registered model, the configuration of its weights (empty: there are none), and arguments of the model."""
    if not name.startswith(HUB_PREFIXES):
        return *table.find(name), {}
    repository = name.partition(":")[2]
    config, arguments = hub.read_config(repository)
    model = config["architecture"].partition(".")[0]
    if model not in registry.registered():
        raise HubError(f"https://huggingface.co/{repository} has a {model}, which is none of python -m models")
    unknown = sorted(set(arguments) - set(registry.model_arguments(model)))
    if unknown:
        raise HubError(f"https://huggingface.co/{repository}: {model} has no argument {', '.join(unknown)} here")
    return model, config, arguments
