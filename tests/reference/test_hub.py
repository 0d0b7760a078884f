"""The table of published weights, and the images that they get, compared with timm."""

import warnings
from pathlib import Path

import numpy as np
import pytest

import models
from minigrad import Tensor, no_grad
from minigrad.nn import init
from models import images, pretrained
from models.compare import libraries
from models.weights import table
from models.weights.layouts import places, to_canonical
from tests.models.fake_hub import hub_server
from tests.reference import hub_table
from tests.reference.conftest import skip_without

__all__ = ["hub_server"]  # a fixture
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def timm():
    skip_without("timm")
    return libraries.load("timm")


def test_table_is_of_timm(timm):
    """After a new model, or for a newer timm: python -m tests.reference.hub_table"""
    assert Path(table.__file__).with_name("hub.csv").read_text() == hub_table.text()


def test_default_weights_are_those_of_timm(timm):
    for model in filter(timm.is_model, models.list_models()):
        config = timm.models.get_pretrained_cfg(model)
        if config and config.hf_hub_id and config.num_classes in hub_table.LABELS:
            assert table.find(model)[1]["hf_hub_id"] == config.hf_hub_id


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[] if name.endswith((".d2_in1k", "tiny_patch16_224.augreg_in21k")) else pytest.mark.exhaustive
        )
        for name in models.list_pretrained()
        if "hf_hub_id" in table.find(name)[1]
    ],
)
def test_weights_fit(name, timm):
    """timm's model of this name has exactly the parameters of ours, under names that are translated."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = {key: tuple(x.shape) for key, x in timm.create_model(name).state_dict().items()}
    with init.meta_init():
        model = models.create_model(name)
    own, found = model.state_dict(), places(theirs, model)
    placed = {place.name for key, place in found.items() if place and place.fits(theirs[key], own[place.name].shape)}
    assert placed == set(own)
    assert all(key.endswith(("relative_position_index", "attn_mask")) for key, place in found.items() if place is None)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (97, 401), (64, 64), (33, 35)])
@pytest.mark.parametrize(
    ("crop_mode", "crop_pct"), [("center", 0.875), ("center", 0.9), ("center", 1.0), ("squash", 0.95)]
)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_images_are_resized_as_by_timm(timm, tmp_path, shape, crop_mode, crop_pct, interpolation):
    Image = pytest.importorskip("PIL.Image")
    from timm.data import create_transform

    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    options = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation}
    transform = create_transform((3, 64, 64), **options, mean=(0, 0, 0), std=(1, 1, 1))
    expected = (255 * transform(Image.open(tmp_path / "x.png"))).round().numpy().astype(np.uint8)
    crop = images.Crop(crop_pct, crop_mode, interpolation)
    np.testing.assert_array_equal(images.read(tmp_path / "x.png", (64, 64), 3, crop), expected)


@pytest.mark.parametrize("name", ["convnext_atto.d2_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"])
def test_logits_of_a_photo(hub_server, timm, tmp_path, name):
    """From timm's file and an image file to the logits: as timm's own transform and model."""
    Image, safetensors = pytest.importorskip("PIL.Image"), pytest.importorskip("safetensors.torch")
    from timm.data import create_transform, resolve_model_data_config

    theirs = timm.create_model(name).eval()
    hub_server.files[f"timm/{name}"] = {"model.safetensors": safetensors.save(theirs.state_dict())}
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((300, 260), Image.Resampling.BICUBIC).save(tmp_path / "x.png")
    transform = create_transform(**resolve_model_data_config(theirs))
    with torch.no_grad():
        expected = theirs(transform(Image.open(tmp_path / "x.png"))[None]).numpy()
    model, metadata = pretrained.load(name)
    pixels = images.read(tmp_path / "x.png", model.img_size, model.in_chans, metadata["crop"])
    with no_grad():
        logits = model(images.to_input(pixels[None], model, metadata)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize(
    ("name", "changes", "out_indices"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64}, None),
        ("vit_tiny_patch16_224", {"img_size": 64}, [0, -1]),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (2, 1, 2, 1)}, None),
        ("convnext_atto", {"depths": (1, 1, 2, 1)}, (1, 3)),
    ],
)
def test_features_only(timm, name, changes, out_indices):
    options = changes | ({} if out_indices is None else {"out_indices": out_indices})
    theirs = timm.create_model(name, features_only=True, **options).eval()
    ours = models.create_model(name, features_only=True, **options).eval()
    state = {key.removeprefix("model."): x.numpy() for key, x in theirs.state_dict().items()}
    if name.startswith("convnext"):  # timm flattens the stages: stages_0 for stages.0
        state = {key.replace("stem_", "stem.").replace("stages_", "stages."): x for key, x in state.items()}
    if name.startswith("swin"):
        state = {key.replace("layers_", "layers."): x for key, x in state.items()}
    own = {key: x.numpy() for key, x in ours.model.state_dict().items()}
    missing = set(own) - set(to_canonical(state, ours.model))
    assert all(key.startswith(("norm", "blocks.", "stages.", "layers.")) for key in missing)  # not run, or pruned
    ours.model.load_state_dict(to_canonical(state, ours.model), strict=False)
    size = ours.model.img_size[0]
    x = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
    with torch.no_grad(), no_grad():
        expected, found = theirs(torch.from_numpy(x)), ours(Tensor(x))
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()
    assert len(ours.feature_info) == len(theirs.feature_info)
    for idx in (0, -1, [1, 0]):
        for method in ("channels", "reduction"):
            assert getattr(ours.feature_info, method)(idx) == getattr(theirs.feature_info, method)(idx)
    keys = ["num_chs", "reduction", "index"]
    assert ours.feature_info.get_dicts(keys) == theirs.feature_info.get_dicts(keys)
    assert [ours.feature_info[1][key] for key in keys] == [theirs.feature_info[1][key] for key in keys]
    for y, reference in zip(found, expected, strict=True):
        reference = reference.permute(0, 3, 1, 2) if name.startswith("swin") else reference
        np.testing.assert_allclose(y.numpy(), reference.numpy(), atol=1e-4 * float(reference.abs().max()), rtol=0)
