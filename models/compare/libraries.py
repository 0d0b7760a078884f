"""L6: build our models with other libraries: torchvision, timm, Hugging Face's transformers.

Networks use the library's own classes, for reduced sizes too. A configuration that a library does not support is
refused, as the library's network would compute another function. PyTorch and the libraries are imported lazily.
"""

import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from minigrad.ops.checks import sides
from models.convnext import ConvNeXt
from models.convnextv2 import ConvNeXtV2
from models.deit import DeiT, DeiT3, VisionTransformerDistilled
from models.dinov2 import DINOv2, SwiGLUPacked
from models.hybrid import HybridVisionTransformer
from models.model import image_size, pair_size
from models.registry import model_arguments, model_class
from models.swin import SwinTransformer
from models.swinv2 import SwinTransformerV2
from models.vit import VisionTransformer

LIBRARIES = ("torchvision", "timm", "transformers")
_ATTENTION = "sdpa"  # for transformers: its "eager" attention computes softmax in float32, whatever the dtype


class UnsupportedError(ValueError):
    """The library is not installed, or does not support the model."""


def build(library: str, model: str, **overrides: Any) -> Any:
    """Another library's implementation of `create_model(model, **overrides)`: a newly initialized torch.nn.Module.

    Raises:
        UnsupportedError: the library is not installed, or does not support the model.
    """
    cls, config = model_class(model), SimpleNamespace(**(model_arguments(model) | overrides))
    config.img_size = image_size(config.img_size)
    for name in {"patch_size", "window_size"} & set(vars(config)):
        setattr(config, name, pair_size(getattr(config, name), name, cls.__name__))
    builder = _BUILDERS.get((library, cls))
    if builder is None:
        others = " or ".join(name for name, built in _BUILDERS if built is cls)
        raise UnsupportedError(
            f"{library} has no {cls.__name__}; " + (f"try {others}" if others else "no supported library has one")
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from inside the libraries
        load(library)
        return builder(config)


def to_float64(network: Any) -> Any:
    """The network in float64 and in evaluation mode.

    All libraries compute the log-spaced offsets of Swin V2 in float32; they are computed again in float64. A library's
    t = sign(Δ) log₂(1 + 8 |Δ| / (M - 1)) / 3 gives |Δ| / (M - 1) = (8^|t| - 1) / 8, a multiple of 1 / (M - 1).
    """
    import torch

    network = network.double().eval()
    for module in network.modules():
        if hasattr(module, "relative_coords_table"):
            t = module.relative_coords_table
            ratio = (8 ** t.abs() - 1) / 8
            smallest = torch.where(ratio > 0, ratio, torch.inf).amin((0, 1, 2))  # of the rows, of the columns
            sides = torch.where(smallest.isinf(), 1, (1 / smallest).round())  # M - 1
            module.relative_coords_table = t.sign() * torch.log2(1 + 8 * (ratio * sides).round() / sides) / 3
    return network


def load(library: str) -> Any:
    """Import a library.

    Raises:
        UnsupportedError: the library is not installed.
    """
    for name in ("torch", library):
        if find_spec(name) is None:
            raise UnsupportedError(f"{name} is not installed: pip install {name}")
    if find_spec("torchvision") is not None:  # the other libraries import torchvision
        _load_torchvision()
    return import_module(library)


def _load_torchvision() -> None:
    """Import torchvision, even if its compiled operators do not match the version of PyTorch.

    On a mismatch the import fails, as torchvision registers fake implementations of operators that do not exist. No
    model needs the operators, so they are declared here without an implementation.
    """
    try:
        import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torch

        library, spec = torch.library.Library("torchvision", "DEF"), find_spec("torchvision")
        source = Path(str(spec and spec.origin)).with_name("_meta_registrations.py").read_text(encoding="utf-8")
        for name in re.findall(r'register_fake\("torchvision::(\w+)"\)', source):
            library.define(f"{name}(Tensor x) -> Tensor")
        _DECLARED.append(library)
        import_module("torchvision")


_DECLARED: list[Any] = []  # keeps the declarations alive


def _require(library: str, conditions: dict[str, bool]) -> None:
    """Raise UnsupportedError unless all conditions are met."""
    unmet = [condition for condition, met in conditions.items() if not met]
    if unmet:
        raise UnsupportedError(f"{library} cannot build this model: it supports only {', '.join(unmet)}")


# ViT ----------------------------------------------------------------------------------------------------------------


def _torchvision_vit(config: SimpleNamespace) -> Any:
    from torchvision.models.vision_transformer import VisionTransformer as Theirs

    H, W = config.img_size
    class_token = config.global_pool == "token"
    conditions = {"square patches": isinstance(config.patch_size, int)}
    conditions |= {"square images": H == W, "3 channels": config.in_chans == 3, "qkv with a bias": config.qkv_bias}
    _require("torchvision", conditions | {"a head on the class token": class_token})
    return Theirs(
        H, config.patch_size, config.depth, config.num_heads, config.embed_dim,
        int(config.embed_dim * config.mlp_ratio), num_classes=config.num_classes,
        representation_size=config.representation_size,
    )  # fmt: skip


def _timm_vit(config: SimpleNamespace, cls: Any = None, **options: Any) -> Any:
    from timm.models.vision_transformer import VisionTransformer as Theirs

    _require("timm", {"heads without a pre-logits layer": config.representation_size is None})
    return (cls or Theirs)(
        config.img_size, config.patch_size, config.in_chans, config.num_classes, config.global_pool, config.embed_dim,
        config.depth, config.num_heads, config.mlp_ratio, config.qkv_bias, **options,
    )  # fmt: skip


def _timm_distilled(config: SimpleNamespace) -> Any:
    from timm.models.deit import VisionTransformerDistilled as Theirs

    return _timm_vit(config, Theirs)


def _timm_deit3(config: SimpleNamespace) -> Any:
    return _timm_vit(config, init_values=config.init_values, no_embed_class=config.no_embed_class)


def _timm_dinov2(config: SimpleNamespace) -> Any:
    from timm.layers import SwiGLUPacked as Theirs
    from torch import nn

    gated = {"mlp_layer": Theirs, "act_layer": nn.SiLU} if config.mlp_layer is SwiGLUPacked else {}
    return _timm_vit(
        config, init_values=config.init_values, no_embed_class=config.no_embed_class, reg_tokens=config.reg_tokens,
        **gated,
    )  # fmt: skip


def _transformers_vit(config: SimpleNamespace) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**_transformers_config(config)))


def _transformers_distilled(config: SimpleNamespace) -> Any:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    return DeiTForImageClassificationWithTeacher(DeiTConfig(**_transformers_config(config)))


def _transformers_dinov2(config: SimpleNamespace) -> Any:
    from transformers import Dinov2Config, Dinov2Model

    (H, W), gated = config.img_size, config.mlp_layer is SwiGLUPacked
    ratio = 3 / 4 * config.mlp_ratio if gated else config.mlp_ratio  # theirs is before the factor ⅔, and one matrix
    conditions = {"models without a head": not config.num_classes, "square images": H == W}
    conditions |= {"no registers": not config.reg_tokens}  # with registers, it has arrays that ours lacks
    conditions |= {"a position embedding of the class token": not config.no_embed_class}
    conditions |= {"an integer mlp_ratio, of a gated MLP times ¾": abs(ratio - round(ratio)) < 1e-4}
    _require("transformers", conditions)
    return Dinov2Model(
        Dinov2Config(
            **_transformers_config(config), mlp_ratio=round(ratio), use_swiglu_ffn=gated,
            layerscale_value=config.init_values, use_mask_token=False,
        )
    )  # fmt: skip


def _transformers_config(config: SimpleNamespace) -> dict[str, Any]:
    """The arguments that the configurations of ViT, DeiT and DINOv2 share."""
    supported = config.representation_size is None and config.global_pool == "token"
    _require("transformers", {"a head on the class token, without a pre-logits layer": supported})
    return {
        "image_size": config.img_size, "patch_size": config.patch_size, "num_channels": config.in_chans,
        "num_labels": config.num_classes, "hidden_size": config.embed_dim, "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads, "intermediate_size": int(config.embed_dim * config.mlp_ratio),
        "qkv_bias": config.qkv_bias, "layer_norm_eps": 1e-6, "attn_implementation": _ATTENTION,
    }  # fmt: skip


# The hybrid ---------------------------------------------------------------------------------------------------------


def _timm_hybrid(config: SimpleNamespace) -> Any:
    from timm.layers import HybridEmbed, StdConv2dSame
    from timm.models import resnetv2
    from torch import nn

    conv = partial(StdConv2dSame, eps=1e-8)
    stem = resnetv2.create_resnetv2_stem(config.in_chans, config.stem_chs, "same", preact=False, conv_layer=conv)
    if config.stem_stride != 4:
        stem.conv = conv(config.in_chans, config.stem_chs, 3, config.stem_stride)
        stem.pool = nn.Identity()
    if config.layers:
        backbone = resnetv2.ResNetV2(
            config.layers, config.channels, num_classes=0, in_chans=config.in_chans, global_pool="",
            stem_chs=config.stem_chs, stem_type="same", preact=False, conv_layer=conv,
        )  # fmt: skip
        backbone.stem = stem
    else:
        backbone = stem
    return _timm_vit(config, embed_layer=partial(HybridEmbed, backbone))


# Swin ---------------------------------------------------------------------------------------------------------------


def _maps(config: SimpleNamespace) -> list[tuple[int, int]]:
    """Height and width of the feature map in each stage."""
    (H, W), (PH, PW) = config.img_size, sides(config.patch_size)
    return [(-(-H // (PH << stage)), -(-W // (PW << stage))) for stage in range(len(config.depths))]


def _torchvision_swin(config: SimpleNamespace, **version: Any) -> Any:
    from torch import nn
    from torchvision.models.swin_transformer import SwinTransformer as Theirs

    _require("torchvision", {"3 channels": config.in_chans == 3, "qkv with a bias": config.qkv_bias})
    (PH, PW), M, (H, W) = sides(config.patch_size), sides(config.window_size), config.img_size
    network = Theirs(
        [PH, PW], config.embed_dim, config.depths, config.num_heads, list(M), config.mlp_ratio,
        stochastic_depth_prob=0.0, num_classes=config.num_classes, **version,
    )  # fmt: skip
    if H % PH or W % PW:  # torchvision drops incomplete patches
        pad = nn.ZeroPad2d((0, -W % PW, 0, -H % PH))
        network.register_forward_pre_hook(lambda network, images: (pad(*images),))
    return network


def _timm_swin(config: SimpleNamespace) -> Any:
    from timm.models.swin_transformer import SwinTransformer as Theirs

    (MH, MW), maps = sides(config.window_size), _maps(config)
    divisible = all(H % MH == W % MW == 0 for H, W in maps)  # otherwise timm pads after the shift, or shrinks windows
    _require("timm", {f"maps divisible into {MH} x {MW} windows, got {_listed(maps)}": divisible})
    return Theirs(
        config.img_size, config.patch_size, config.in_chans, config.num_classes, embed_dim=config.embed_dim,
        depths=config.depths, num_heads=config.num_heads, window_size=(MH, MW), mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias, drop_path_rate=0.0,
    )  # fmt: skip


def _transformers_swin(config: SimpleNamespace) -> Any:
    from transformers import SwinConfig, SwinForImageClassification

    M, maps = config.window_size, _maps(config)
    _require("transformers", {"square windows": isinstance(M, int)})
    # Otherwise transformers shrinks the window, or shifts along one axis only.
    supported = all(min(H, W) > M or H == W == M for H, W in maps)
    condition = f"maps equal to one {M} x {M} window, or larger on both sides, got {_listed(maps)}"
    _require("transformers", {condition: supported})
    return SwinForImageClassification(
        SwinConfig(
            image_size=config.img_size, patch_size=config.patch_size, num_channels=config.in_chans,
            num_labels=config.num_classes, embed_dim=config.embed_dim, depths=config.depths,
            num_heads=config.num_heads, window_size=M, mlp_ratio=config.mlp_ratio, qkv_bias=config.qkv_bias,
            attn_implementation=_ATTENTION,
        )
    )  # fmt: skip


# Swin V2 ------------------------------------------------------------------------------------------------------------


def _torchvision_swinv2(config: SimpleNamespace) -> Any:
    from torchvision.models import swin_transformer

    (MH, MW), maps = sides(config.window_size), _maps(config)
    covered = all(H >= MH and W >= MW for H, W in maps)  # torchvision pads smaller maps
    conditions = {f"maps of at least {MH} x {MW}, got {_listed(maps)}": covered}
    conditions |= {"offsets scaled to the window size": not any(config.pretrained_window_sizes)}
    _require("torchvision", conditions)
    version = {"block": swin_transformer.SwinTransformerBlockV2, "downsample_layer": swin_transformer.PatchMergingV2}
    network = _torchvision_swin(config, **version)
    for module in network.modules():
        if hasattr(module, "inplace"):  # the ReLUs of the position bias: their inputs would get no gradient
            module.inplace = False
    return network


def _timm_swinv2(config: SimpleNamespace) -> Any:
    from timm.models.swin_transformer_v2 import SwinTransformerV2 as Theirs

    (MH, MW), (PH, PW), maps = sides(config.window_size), sides(config.patch_size), _maps(config)
    divisible = all(H % min(MH, H) == W % min(MW, W) == 0 for H, W in maps)  # otherwise timm pads after the shift
    _require("timm", {f"maps divisible into {MH} x {MW} windows, got {_listed(maps)}": divisible})
    return Theirs(
        config.img_size, (PH, PW), config.in_chans, config.num_classes, embed_dim=config.embed_dim,
        depths=config.depths, num_heads=config.num_heads, window_size=(MH, MW), mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias, pretrained_window_sizes=config.pretrained_window_sizes, drop_path_rate=0.0,
    )  # fmt: skip


def _transformers_swinv2(config: SimpleNamespace) -> Any:
    from transformers import Swinv2Config, Swinv2ForImageClassification

    M, maps = config.window_size, _maps(config)
    _require("transformers", {"square windows": isinstance(M, int)})
    # Otherwise windows are not square, or, as transformers rounds the size of an odd map down, there is no shift.
    (H, W), (PH, PW) = config.img_size, sides(config.patch_size)
    rounded = [(H // (PH << stage), W // (PW << stage)) for stage in range(len(maps))]
    even = [size == exact for size, exact in zip(rounded, maps, strict=True)]
    supported = all(min(h, w) > M or (even[stage] and h == w) for stage, (h, w) in enumerate(rounded))
    _require("transformers", {f"maps larger than {M} x {M}, or even and square, got {_listed(maps)}": supported})
    return Swinv2ForImageClassification(
        Swinv2Config(
            image_size=config.img_size, patch_size=config.patch_size, num_channels=config.in_chans,
            num_labels=config.num_classes, embed_dim=config.embed_dim, depths=config.depths,
            num_heads=config.num_heads, window_size=M, mlp_ratio=config.mlp_ratio, qkv_bias=config.qkv_bias,
            pretrained_window_sizes=config.pretrained_window_sizes,
        )
    )  # fmt: skip


def _listed(maps: list[tuple[int, int]]) -> str:
    return ", ".join(f"{H} x {W}" for H, W in maps)


# ConvNeXt -----------------------------------------------------------------------------------------------------------


def _torchvision_convnext(config: SimpleNamespace) -> Any:
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.models.convnext import ConvNeXt as Theirs

    conditions = {"7 x 7 kernels": config.kernel_size == 7, "an mlp_ratio of 4": config.mlp_ratio == 4}
    _require("torchvision", conditions | {"3 channels": config.in_chans == 3})
    stages = zip(config.dims, [*config.dims[1:], None], config.depths, strict=True)
    network = Theirs([CNBlockConfig(*stage) for stage in stages], num_classes=config.num_classes)
    network.features[0][0] = _convnext_stem(config)
    return network


def _timm_convnext(config: SimpleNamespace, **version: Any) -> Any:
    from timm.models.convnext import ConvNeXt as Theirs

    _require("timm", {"an mlp_ratio of 4": config.mlp_ratio == 4, "four stages": len(config.depths) == 4})
    network = Theirs(
        config.in_chans, config.num_classes, depths=config.depths, dims=config.dims, kernel_sizes=config.kernel_size,
        **version,
    )  # fmt: skip
    network.stem[0] = _convnext_stem(config)
    return network


def _convnext_stem(config: SimpleNamespace) -> Any:
    from torch import nn

    size, kernel_size = config.stem_size, config.stem_kernel_size or config.stem_size
    return nn.Conv2d(config.in_chans, config.dims[0], kernel_size, size, (kernel_size - size + 1) // 2)


def _transformers_convnext(config: SimpleNamespace, version: str = "") -> Any:
    import transformers

    conditions = {"7 x 7 kernels": config.kernel_size == 7, "an mlp_ratio of 4": config.mlp_ratio == 4}
    patches = config.stem_kernel_size in (None, config.stem_size)
    _require("transformers", conditions | {"patches that do not overlap": patches})
    network = getattr(transformers, f"ConvNext{version}ForImageClassification")
    return network(
        network.config_class(
            num_channels=config.in_chans, patch_size=config.stem_size, num_stages=len(config.depths),
            hidden_sizes=list(config.dims), depths=list(config.depths), num_labels=config.num_classes,
            layer_norm_eps=1e-6,
        )
    )  # fmt: skip


def _timm_convnextv2(config: SimpleNamespace) -> Any:
    without_layer_scale = config.layer_scale_init_value is None
    _require("timm", {"blocks with GRN but without layer scale": without_layer_scale})
    return _timm_convnext(config, use_grn=True, ls_init_value=None)


def _transformers_convnextv2(config: SimpleNamespace) -> Any:
    without_layer_scale = config.layer_scale_init_value is None
    _require("transformers", {"blocks with GRN but without layer scale": without_layer_scale})
    return _transformers_convnext(config, "V2")


_BUILDERS: dict[tuple[str, type], Callable[[SimpleNamespace], Any]] = {
    ("torchvision", VisionTransformer): _torchvision_vit,
    ("timm", VisionTransformer): _timm_vit,
    ("transformers", VisionTransformer): _transformers_vit,
    ("torchvision", DeiT): _torchvision_vit,
    ("timm", DeiT): _timm_vit,
    ("transformers", DeiT): _transformers_vit,
    ("timm", VisionTransformerDistilled): _timm_distilled,
    ("transformers", VisionTransformerDistilled): _transformers_distilled,
    ("timm", DeiT3): _timm_deit3,
    ("timm", DINOv2): _timm_dinov2,
    ("transformers", DINOv2): _transformers_dinov2,
    ("timm", HybridVisionTransformer): _timm_hybrid,
    ("torchvision", SwinTransformer): _torchvision_swin,
    ("timm", SwinTransformer): _timm_swin,
    ("transformers", SwinTransformer): _transformers_swin,
    ("torchvision", SwinTransformerV2): _torchvision_swinv2,
    ("timm", SwinTransformerV2): _timm_swinv2,
    ("transformers", SwinTransformerV2): _transformers_swinv2,
    ("torchvision", ConvNeXt): _torchvision_convnext,
    ("timm", ConvNeXt): _timm_convnext,
    ("transformers", ConvNeXt): _transformers_convnext,
    ("timm", ConvNeXtV2): _timm_convnextv2,
    ("transformers", ConvNeXtV2): _transformers_convnextv2,
}
