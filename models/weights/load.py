"""L6: pretrained weights: a file is read, its arrays are matched with the model's parameters, and loaded if all fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from models.model import ImageModel
from models.weights import checkpoint
from models.weights.mismatch import MisfitError, find_misfits, misfit_error
from models.weights.plan import make_plan
from models.weights.read import read

__all__ = ["Loaded", "MisfitError", "load_weights"]


class Loaded(NamedTuple):
    """What `load_weights` has loaded."""

    head: bool  # whether the classifier was loaded
    classes: int | None  # of the file's classifier; None: it has no classifier with a bias
    resized: list[str]  # the parameters of positions that were resampled


def load_weights(
    model: ImageModel, weights: str | Path | Mapping[str, Any], *, head: bool | None = True, resize: bool = False
) -> Loaded:
    """Load weights in the names of timm, torchvision, Microsoft's Swin, Facebook's ConvNeXt, Hugging Face's
    transformers, Google's JAX code, or minigrad. They take the model's dtype, and go to its device.

    Args:
        model: a model of the same architecture.
        weights: a `.safetensors` or `.npz` file; a file of `torch.save` (`.pth`, `.pt`, `.bin`, `.ckpt`, `.pth.tar`, or
            without a suffix), for which torch must be installed; or a dict of arrays, Tensors or torch tensors. What
            wraps them, such as `{"model": ...}`, is taken off; where there are averaged weights (EMA) beside the
            others, these are loaded. Other objects in the file are passed over, and none of their code is run.
        head: whether to load the classifier, and the pre-logits layer before it where there is one. Otherwise the
            model keeps its own, and the file's are passed over. None: if they fit.
        resize: whether to resample position embeddings and tables of relative positions that were made for another
            size of image or window. A checkpoint of `python -m train` names its model, so that its grid and windows
            are known. In other files they are not, and are taken to be square: without `resize`, the positions of an
            oblong grid are loaded unchanged.

    Returns:
        What was loaded: whether the classifier was, of how many classes the file's is, and what was resampled.

    Raises:
        MisfitError: the weights do not fit the model; the message shows where, and what may help. The model is as it
            was.
        ValueError: the file is damaged, or holds anything but arrays.
        FileNotFoundError: there is no such file.
        RuntimeError: the library that reads such a file is not installed.
    """
    arrays = read(weights)
    origin = checkpoint.described_model(weights) if resize else None
    whole = make_plan(arrays, model, resize, origin)
    if head is None:
        head = not find_misfits(whole.part(head=True), model)
    plan = whole if head else whole.part(head=False)
    if misfits := find_misfits(plan, model):
        raise misfit_error(misfits, plan, model, resize)
    model.load_state_dict(plan.state_dict(model), strict=False)
    return Loaded(head, whole.classes(), plan.resized())
