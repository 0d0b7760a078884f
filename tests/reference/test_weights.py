"""Weights of networks of timm, torchvision and transformers, loaded under their own names, give equal logits."""

import argparse
import collections
import datetime
import os
import re
import subprocess
import tracemalloc

import numpy as np
import pytest

import models
from minigrad import Tensor, no_grad
from minigrad.nn import init
from models.compare import formula, libraries
from models.compare.references import logits_of
from models.convnext import ConvNeXt
from models.convnextv2 import ConvNeXtV2
from models.deit import VisionTransformerDistilled
from models.dinov2 import DINOv2, SwiGLUPacked
from models.roadmap import RoadmapNet
from models.swin import SwinTransformer
from models.swinv2 import SwinTransformerV2
from models.vit import VisionTransformer
from models.weights.layouts import places
from tests.models.foreign import refusal, timm_convnext, written

torch = pytest.importorskip("torch")

_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
_TRANSFORMERS = {
    "image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 96, "layer_norm_eps": 1e-6, "attn_implementation": "sdpa",
}  # fmt: skip
_SWIN = {"embed_dim": 12, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 3, 6), "window_size": 4}
_CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 40)}


def from_timm(name, **overrides):
    """A small version of a timm model, and the model of the same name here."""
    overrides = {"num_classes": 7} | overrides
    return libraries.load("timm").create_model(name, **overrides), models.create_model(name, **overrides)


def torchvision_vit():
    libraries.load("torchvision")
    from torchvision.models.vision_transformer import VisionTransformer as Reference

    model = VisionTransformer(**_VIT, num_classes=7, representation_size=20)
    return Reference(32, 8, 2, 3, 24, 96, num_classes=7, representation_size=20), model


def torchvision_swin():
    libraries.load("torchvision")
    from torchvision.models.swin_transformer import SwinTransformer as Reference

    reference = Reference([4, 4], 12, [2, 1, 1, 1], [1, 2, 3, 6], [4, 4], num_classes=7, stochastic_depth_prob=0.0)
    return reference, SwinTransformer(**_SWIN, img_size=96, num_classes=7)


def torchvision_convnext():
    libraries.load("torchvision")
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.models.convnext import ConvNeXt as Reference

    stages = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 2), CNBlockConfig(24, None, 1)]
    return Reference(stages, num_classes=7), ConvNeXt(64, depths=(1, 2, 1), dims=(8, 16, 24), num_classes=7)


def torchvision_resnet():
    """The reference and the model. torchvision's ResNet has buffers that the model here lacks."""
    libraries.load("torchvision")
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [1, 2, 1, 1], num_classes=7), RoadmapNet(64, num_classes=7, depths=(1, 2, 1, 1))


def transformers_vit():
    transformers = libraries.load("transformers")
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, num_labels=7, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=96, layer_norm_eps=1e-6,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config), VisionTransformer(**_VIT, num_classes=7)


def transformers_deit():
    transformers = libraries.load("transformers")
    config = transformers.DeiTConfig(**_TRANSFORMERS, num_labels=7)
    model = VisionTransformerDistilled(**_VIT, num_classes=7)
    return transformers.DeiTForImageClassificationWithTeacher(config), model


def transformers_dinov2(registers: bool, gated: bool):
    """The base models, whose output is the class token; with registers, the class token has a position, too."""
    transformers = libraries.load("transformers")
    config = {**_TRANSFORMERS, "use_swiglu_ffn": gated, "layerscale_value": 1.0}
    mlp = {"mlp_layer": SwiGLUPacked, "mlp_ratio": 2 * 2.66667} if gated else {}
    model = DINOv2(**_VIT, num_classes=0, reg_tokens=4 * registers, no_embed_class=registers, **mlp)
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**config, num_register_tokens=4)
        return transformers.Dinov2WithRegistersModel(config), model
    return transformers.Dinov2Model(transformers.Dinov2Config(**config)), model


def transformers_swin():
    transformers = libraries.load("transformers")
    config = transformers.SwinConfig(image_size=128, num_labels=7, **_SWIN)
    return transformers.SwinForImageClassification(config), SwinTransformer(**_SWIN, img_size=128, num_classes=7)


def transformers_convnext():
    transformers = libraries.load("transformers")
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 16, 24, 40], depths=[1, 1, 2, 1], num_labels=7, layer_norm_eps=1e-6
    )
    return transformers.ConvNextForImageClassification(config), ConvNeXt(64, **_CONVNEXT, num_classes=7)


def torchvision_swinv2():
    libraries.load("torchvision")
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
    from torchvision.models.swin_transformer import SwinTransformer as Reference

    reference = Reference(
        [4, 4], 12, [2, 1, 1, 1], [1, 2, 3, 6], [4, 4], num_classes=7, stochastic_depth_prob=0.0,
        block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2,
    )  # fmt: skip
    return reference, SwinTransformerV2(**_SWIN, img_size=128, num_classes=7)


def transformers_swinv2():
    transformers = libraries.load("transformers")
    config = transformers.Swinv2Config(image_size=128, num_labels=7, **_SWIN)
    reference = transformers.Swinv2ForImageClassification(config)
    return reference, SwinTransformerV2(**_SWIN, img_size=128, num_classes=7)


def transformers_convnextv2():
    transformers = libraries.load("transformers")
    config = transformers.ConvNextV2Config(
        hidden_sizes=[8, 16, 24, 40], depths=[1, 1, 2, 1], num_labels=7, layer_norm_eps=1e-6
    )
    return transformers.ConvNextV2ForImageClassification(config), ConvNeXtV2(img_size=64, **_CONVNEXT, num_classes=7)


PAIRS = {
    "timm vit": lambda: from_timm("vit_tiny_patch16_224", img_size=64, depth=2),
    "timm vit without a head": lambda: from_timm("vit_small_patch8_224", img_size=32, depth=2, num_classes=0),
    "timm deit": lambda: from_timm("deit_tiny_patch16_224", img_size=64, depth=2),
    "timm distilled deit": lambda: from_timm("deit_tiny_distilled_patch16_224", img_size=64, depth=2),
    "timm deit3": lambda: from_timm("deit3_small_patch16_224", img_size=64, depth=2),
    "timm dinov2": lambda: from_timm("vit_small_patch14_dinov2", img_size=56, depth=2),
    "timm dinov2 with registers": lambda: from_timm("vit_small_patch14_reg4_dinov2", img_size=56, depth=2),
    "timm gated dinov2": lambda: from_timm(
        "vit_giant_patch14_reg4_dinov2", img_size=28, depth=2, embed_dim=96, num_heads=3, num_classes=0
    ),
    "timm hybrid": lambda: from_timm("vit_base_r50_s16_224", img_size=64, depth=1, embed_dim=96, num_heads=3),
    "timm hybrid without stages": lambda: from_timm("vit_tiny_r_s16_p8_224", img_size=64, depth=1),
    "timm swin": lambda: from_timm("swin_tiny_patch4_window7_224", img_size=128, **_SWIN),
    "timm convnext_atto": lambda: from_timm("convnext_atto", **_CONVNEXT),
    "timm convnext_tiny": lambda: from_timm("convnext_tiny", **_CONVNEXT),
    "timm swinv2": lambda: from_timm("swinv2_base_window12to16_192to256", img_size=128, **_SWIN),
    "timm convnextv2_atto": lambda: from_timm("convnextv2_atto", **_CONVNEXT),
    "timm convnextv2_tiny": lambda: from_timm("convnextv2_tiny", **_CONVNEXT),
    "torchvision vit": torchvision_vit,
    "torchvision swin": torchvision_swin,
    "torchvision convnext": torchvision_convnext,
    "torchvision resnet": torchvision_resnet,
    "transformers vit": transformers_vit,
    "transformers deit": transformers_deit,
    "transformers dinov2": lambda: transformers_dinov2(registers=False, gated=False),
    "transformers gated dinov2": lambda: transformers_dinov2(registers=False, gated=True),
    "transformers dinov2 with registers": lambda: transformers_dinov2(registers=True, gated=False),
    "transformers gated dinov2 with registers": lambda: transformers_dinov2(registers=True, gated=True),
    "transformers swin": transformers_swin,
    "transformers convnext": transformers_convnext,
    "torchvision swinv2": torchvision_swinv2,
    "transformers swinv2": transformers_swinv2,
    "transformers convnextv2": transformers_convnextv2,
}


@pytest.mark.filterwarnings("ignore")  # warnings of the libraries
@pytest.mark.parametrize("pair", PAIRS)
def test_state_dicts_give_equal_logits(pair):
    """The weights are nonzero and in float64. Every parameter of the reference is loaded."""
    try:
        with init.skip_init():
            reference, model = PAIRS[pair]()
    except libraries.UnsupportedError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    reference, model = libraries.to_float64(reference), model.to(dtype=np.float64).eval()
    models.load_weights(model, reference.state_dict())
    images = formula.stream("x.weights", 2, 3, *model.img_size)
    with torch.no_grad(), no_grad():
        expected = reference(torch.from_numpy(images))
        expected = (expected if isinstance(expected, torch.Tensor) else logits_of(expected)).numpy()
        logits = model(Tensor(images)).numpy()
    assert abs(expected).max() > 1e-3
    assert abs(logits - expected).max() < 1e-12 * abs(expected).max()
    placed = places(dict(reference.named_parameters()), model)
    assert [name for name, place in placed.items() if place is None and not name.endswith("mask_token")] == []


# Files --------------------------------------------------------------------------------------------------------------


def state_dict_and_model() -> tuple[dict[str, torch.Tensor], ConvNeXt]:
    """A state dict of PyTorch tensors with timm's names, and a model for it."""
    model = ConvNeXt(32, depths=(1,), dims=(8,), num_classes=7)
    entries = written(ConvNeXt(32, depths=(1,), dims=(8,), num_classes=7), timm_convnext)
    return {name: torch.from_numpy(x) for name, x in entries.items()}, model.to(dtype=np.float64)


def assert_has_weights(model, rounded=lambda x: x):
    for name, parameter in model.named_parameters():
        expected = rounded(torch.from_numpy(formula.weight(name, *parameter.shape))).double().numpy()
        np.testing.assert_array_equal(parameter.numpy(), expected, err_msg=name)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save_load(tmp_path, suffix, zipped):
    entries, model = state_dict_and_model()
    checkpoint = {
        "model": {f"module.{name}": x for name, x in entries.items()},
        "epoch": 3,
        "lr_scheduler": {"step": 7},
    }
    torch.save(checkpoint, tmp_path / f"w{suffix}", _use_new_zipfile_serialization=zipped)
    models.load_weights(model, tmp_path / f"w{suffix}")
    assert_has_weights(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_files_of_lower_precision(tmp_path, dtype):
    entries, model = state_dict_and_model()
    entries = {name: x.to(dtype) for name, x in entries.items()}
    torch.save(entries, tmp_path / "w.pth")
    pytest.importorskip("safetensors.torch").save_file(entries, tmp_path / "w.safetensors")
    for file in ("w.pth", "w.safetensors"):
        formula.fill(model).zero_grad()
        models.load_weights(model, tmp_path / file)
        assert_has_weights(model, lambda x: x.to(dtype))


def test_parameters_that_require_grad_load():
    entries, model = state_dict_and_model()
    models.load_weights(model, {name: torch.nn.Parameter(x) for name, x in entries.items()})
    assert_has_weights(model)


class RunsCode:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


class RunsShell:
    def __reduce__(self):
        return os.system, ("exit 1",)


class RunsProgram:
    def __reduce__(self):
        return subprocess.call, (["false"],)


class UnknownObject:
    """An object in a checkpoint beside the weights. Unpickling it raises."""

    def __init__(self):
        self.settings = {"lr": 0.1}

    def __setstate__(self, state):
        raise SystemExit("code of the file was run")


class UnknownDict(dict):
    """A dict with further state, as the settings in checkpoints of Microsoft's Swin."""

    def __init__(self, **items):
        super().__init__(items)
        self.frozen = True


class UnknownList(list):
    """A list of a class of its own."""


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("payload", "name"),
    [(RunsCode(), "exec"), (RunsShell(), r"(posix|nt)\.system"), (RunsProgram(), r"(subprocess|commands)\.call")],
)
def test_pickles_that_run_programs_are_refused(tmp_path, payload, name, zipped):
    entries, model = state_dict_and_model()
    torch.save({"model": entries, "args": payload}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    message = refusal(model, tmp_path / "w.pth")
    assert re.search(rf"holds objects that could run code and are not loaded: it names {name}\. If", message)
    assert message.isprintable() and message.endswith("torch.save(model.state_dict(), file)")


def test_an_index_in_a_pickle_allocates_no_table(tmp_path):
    """A file that stores an object under a large index: the C unpickler would allocate a table up to this index."""
    _, model = state_dict_and_model()
    pickled = b"\x80\x02}r\xff\xff\xff\x00."  # protocol 2, an empty dict, LONG_BINPUT 2²⁴ - 1, the end
    (tmp_path / "w.pth").write_bytes(pickled * 5)
    tracemalloc.start()
    try:
        refusal(model, tmp_path / "w.pth")
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["w.pth", "W.PTH", "w.pt", "w.bin", "w.ckpt", "model_best.pth.tar", "W.PTH.TAR", "w"])
def test_other_objects_in_a_checkpoint_are_ignored(tmp_path, name, zipped):
    """Checkpoints of timm, Lightning and Microsoft's Swin have other objects, none of which is unpickled."""
    entries, model = state_dict_and_model()
    other_entries = {
        "args": argparse.Namespace(lr=0.1, output=tmp_path, begun=datetime.datetime.now()), "epoch": 3,
        "metric": np.float64(0.5), "scores": np.arange(3.0), "callbacks": {UnknownObject: UnknownObject()},
        "config": UnknownDict(lr=0.1, betas=UnknownDict(first=0.9)), "history": UnknownList([1, {}]),
        "recent": collections.deque([1]), "best": collections.defaultdict(list, {3: [0.5]}), "type": int,
        "steps": range(3), "named": frozenset("a"), "part": slice(2),
        "user": collections.UserDict(a=1), "error": ValueError("a"),
    }  # fmt: skip
    checkpoint = {"state_dict": {f"model.{key}": x for key, x in entries.items()}, **other_entries}
    torch.save(checkpoint, tmp_path / name, _use_new_zipfile_serialization=zipped)
    allowed = set(torch.serialization.get_safe_globals())
    models.load_weights(model, tmp_path / name)
    assert_has_weights(model)
    assert set(torch.serialization.get_safe_globals()) == allowed


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: {"model_state": x}, lambda x: {"model_ema": {"module": x}, "state_dict": {}}, lambda x: {"net": x},
        lambda x: {"state_dict": {f"net.{name}": y for name, y in x.items()}, "model_ema": None, "optimizer": {}},
        lambda x: {"model": {f"module._orig_mod.{name}": y for name, y in x.items()}, "state_dict": {}},
        lambda x: {"state_dict_ema": x, "state_dict": {name: 2 * y for name, y in x.items()}},
    ],
)  # fmt: skip
def test_nested_state_dicts_and_prefixes_are_found(wrap):
    entries, model = state_dict_and_model()
    models.load_weights(model, wrap(entries))
    assert_has_weights(model)


def test_state_dict_of_a_class_derived_from_dict_loads(tmp_path):
    entries, model = state_dict_and_model()
    torch.save(UnknownDict(model=UnknownDict(**entries)), tmp_path / "w.pth")
    models.load_weights(model, tmp_path / "w.pth")
    assert_has_weights(model)


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    message = refusal(state_dict_and_model()[1], tmp_path / "w.pth")
    assert "w.pth is a pickled object of class Linear, which could run code and is not loaded" in message
    assert message.endswith("save the weights alone: torch.save(model.state_dict(), file)")


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.99])
def test_truncated_files_are_refused(tmp_path, fraction):
    entries, model = state_dict_and_model()
    torch.save(entries, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(content[: int(fraction * len(content))])
    assert "is damaged" in refusal(model, tmp_path / "w.pth")


def test_files_without_a_dict_of_tensors_are_refused(tmp_path):
    entries, model = state_dict_and_model()
    torch.save([torch.zeros(3)], tmp_path / "w.pth")
    with pytest.raises(TypeError, match="must be a dict of arrays by name, or a file with such a dict, got list"):
        models.load_weights(model, tmp_path / "w.pth")
    torch.save(entries | {"norm.weight": torch.zeros(8, 8).to_sparse()}, tmp_path / "w.pth")
    assert "'norm.weight' cannot be converted to a NumPy array" in refusal(model, tmp_path / "w.pth")
