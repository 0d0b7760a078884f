"""L6: pretrained weights from other frameworks and repositories.

Read the file, match its arrays with the model's parameters by name, and load all of them or, if one does not fit, none.
"""

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
    """The result of `load_weights`."""

    head: bool  # whether the classifier was loaded
    classes: int | None  # number of classes of the file's classifier; None: no classifier bias in the file
    resized: list[str]  # the names of the resampled parameters


def load_weights(
    model: ImageModel, weights: str | Path | Mapping[str, Any], *, head: bool | None = True, resize: bool = False
) -> Loaded:
    """Load weights under the parameter names of timm, torchvision, Microsoft's Swin, Facebook's ConvNeXt, Hugging
    Face's transformers, Google's JAX code or minigrad. Weights are cast to the model's dtype and copied to its device.

    Args:
        model: a model of the same architecture.
        weights: a `.safetensors` or `.npz` file; a file of `torch.save` (`.pth`, `.pt`, `.bin`, `.ckpt`, `.pth.tar`, or
            without a suffix), for which torch must be installed; the folder of a run of `python -m train`, for its best
            checkpoint; or a dict of arrays, Tensors or torch tensors. The dict may be nested, as in `{"model": ...}`.
            If a file has averaged weights (EMA) too, the averages are loaded. Other objects in the file are ignored,
            and none of their code is run.
        head: whether to load the classifier and, if there is one, the pre-logits layer before it. False: the model
            keeps its own head, and the file's head is ignored. None: load the head if it fits.
        resize: whether to resample position embeddings and relative position bias tables of another image or window
            size. A checkpoint of `python -m train` records its grid and window size. Other files: grid and windows are
            assumed square. Without `resize`, a position embedding of a different grid but equal length is loaded
            unchanged.

    Returns:
        Whether the head was loaded, the number of classes in the file, and the resampled parameters.

    Raises:
        MisfitError: the weights do not fit the model; the message lists all mismatches and likely fixes. The model is
            unchanged.
        ValueError: the file is damaged, or holds an entry that is not an array.
        TypeError: `model` is not an `ImageModel`, or the weights are neither a file nor a dict.
        FileNotFoundError: the file does not exist.
        RuntimeError: the library for this file format is not installed.
    """
    if not isinstance(model, ImageModel):
        inner = "; pass its .model" if isinstance(getattr(model, "model", None), ImageModel) else ""
        raise TypeError(f"load_weights needs an ImageModel, got {type(model).__name__}{inner}")
    weights = checkpoint.find(weights) if isinstance(weights, str | Path) else weights
    arrays = read(weights)
    saved_from = checkpoint.described_model(weights) if resize else None
    full_plan = make_plan(arrays, model, resize, saved_from)
    if head is None:
        head = not find_misfits(full_plan.part(head=True), model)
    plan = full_plan if head else full_plan.part(head=False)
    if misfits := find_misfits(plan, model):
        raise misfit_error(misfits, plan, model, resize)
    model.load_state_dict(plan.state_dict(model), strict=False)
    return Loaded(head, full_plan.classes(), plan.resized())
