"""Checkpoints of `python -m train`: damaged files, and metadata that does not fit, are refused."""

import json
import zipfile

import numpy as np
import pytest

from minigrad import serialize
from models import load_weights
from models.weights import checkpoint
from tests.models.checkpoints import CLASSES, write


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "metadata has no model name"),
        ({"model": {"name": ["vit"]}}, "metadata has no model name"),
        ({"model": {"name": "vit_nano_cifr"}}, "did you mean vit_nano_cifar"),
        ({"model": {"name": "vit_nano_cifar", "num_classes": 7, "depth": 2, "colour": 3}}, "no argument colour"),
        ({"model": {"name": "vit_nano_cifar", "num_classes": "7"}}, "num_classes must be an integer, at least 0"),
        ({"model": {"name": "vit_nano_cifar", "num_classes": 7, "depth": 3}}, r"'blocks.2.norm1.weight' is absent"),
        ({"model": {"name": "vit_nano_cifar", "num_classes": 7, "depth": 1}}, r"'blocks.1.norm1.weight' is \(64,\)"),
        ({"model": {"name": "vit_nano_cifar", "num_classes": 7, "depth": 2, "embed_dim": 1 << 12}}, "'cls_token' is"),
        (
            {"model": {"name": "vit_nano_cifar", "num_classes": 7, "depth": 2, "embed_dim": 1 << 40}},
            "Unable to allocate",
        ),
        ({"model": {"name": "vit_nano_cifar", "num_classes": 7, "depth": 2, "embed_dim": 1 << 80}}, "not a checkpoint"),
        ({"classes": CLASSES[1:]}, "6 class names for a model with 7 classes"),
        ({"classes": [1, 2, 3, 4, 5, 6, 7]}, "not a list of names"),
        ({"mean": [0.5]}, "its mean must have a finite number for each of 3 channels"),
        ({"mean": [0.5, "x", 0.5]}, "its mean must"),
        ({"mean": [0.5, float("nan"), 0.5]}, "its mean must"),
        ({"mean": [0.5, float("inf"), 0.5]}, "its mean must"),
        ({"std": [0.5, 0.0, 0.5]}, "its std must have a positive finite number for each"),
        ({"std": True}, "its std must"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(changes, message, tmp_path):
    write(tmp_path / "best.npz", "vit", **changes)
    with pytest.raises(ValueError, match=f"best.npz .*{message}"):
        checkpoint.load(tmp_path / "best.npz")


@pytest.mark.parametrize("metadata", [None, [], "vit", {}, {"model": {}}])
def test_metadata_of_other_programs_is_refused(metadata, tmp_path):
    write(tmp_path / "vit.npz", "vit")
    with zipfile.ZipFile(tmp_path / "vit.npz") as original, zipfile.ZipFile(tmp_path / "other.npz", "w") as other:
        for name in original.namelist():
            if name != "__metadata__.npy":
                other.writestr(name, original.read(name))
        with other.open("__metadata__.npy", "w") as file:
            np.lib.format.write_array(file, np.frombuffer(json.dumps(metadata).encode(), np.uint8))
    with pytest.raises(ValueError, match=r"is not a checkpoint of `python -m train`"):
        checkpoint.load(tmp_path / "other.npz")


@pytest.mark.parametrize("values", [np.full((7, 64), "x"), np.zeros((7, 64), complex), np.zeros((7, 64), int)])
def test_weights_that_are_not_floating_point_are_refused(values, tmp_path):
    model = write(tmp_path / "vit.npz", "vit")
    _, metadata = checkpoint.load(tmp_path / "vit.npz")
    serialize.save(tmp_path / "vit.npz", {**model.state_dict(), "head.weight": values}, metadata)
    with pytest.raises(
        ValueError, match=r"'head.weight' is \(7, 64\) of kind '[Uci]' in the file, .* 'f' in the model"
    ):
        checkpoint.load(tmp_path / "vit.npz")


def test_changed_bytes_give_an_error_or_a_model(tmp_path):
    write(tmp_path / "best.npz", "vit")
    content, rng = (tmp_path / "best.npz").read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[-rng.integers(1, 6000)] ^= int(rng.integers(1, 256))  # the location of names and metadata
        (tmp_path / "damaged.npz").write_bytes(damaged)
        try:
            checkpoint.load(tmp_path / "damaged.npz")
        except ValueError as error:
            assert "damaged.npz" in str(error)


def test_folder_of_a_run_is_its_best_checkpoint(tmp_path):
    """For `load` and `load_weights`; a folder without a best checkpoint is refused."""
    model = write(tmp_path / "best.npz", "vit")
    write(tmp_path / "last.npz", "swin")
    other, _ = checkpoint.load(tmp_path / "best.npz")
    other.head.weight.data[...] = 0
    load_weights(other, tmp_path)
    for loaded in (other, checkpoint.load(tmp_path)[0]):
        np.testing.assert_array_equal(loaded.head.weight.numpy(), model.head.weight.numpy())
    (tmp_path / "best.npz").unlink()
    for load in (checkpoint.load, lambda path: load_weights(other, path)):
        with pytest.raises(ValueError, match=r"has no best\.npz or best\.safetensors, the best checkpoint of a run"):
            load(tmp_path)
