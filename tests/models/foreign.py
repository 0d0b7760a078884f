"""Formula weights in the file layouts of other libraries: an independent inverse of `models.load_weights`.

Also helpers that several tests of weights share.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest

import models
from minigrad import nn
from models.compare import formula
from models.vit import Mlp
from tests.models.small import small

Arrays = dict[str, np.ndarray]

# Each function translates our parameter name into a library's; `{}` stands for q, k and v if they are separate arrays.


def ours(name):
    return name


def torchvision_vit(name):
    match name.split("."):
        case ["cls_token"]:
            return "class_token"
        case ["pos_embed"]:
            return "encoder.pos_embedding"
        case ["patch_embed", "proj", kind]:
            return f"conv_proj.{kind}"
        case ["blocks", i, "attn", "qkv", kind]:
            return f"encoder.layers.encoder_layer_{i}.self_attention.in_proj_{kind}"
        case ["blocks", i, *layer, kind]:
            renamed = {"norm1": "ln_1", "norm2": "ln_2", "attn.proj": "self_attention.out_proj"}
            renamed |= {"mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3"}
            return f"encoder.layers.encoder_layer_{i}.{renamed['.'.join(layer)]}.{kind}"
        case ["norm", kind]:
            return f"encoder.ln.{kind}"
        case ["pre_logits", "fc", kind]:
            return f"heads.pre_logits.{kind}"
        case ["head", kind]:
            return f"heads.head.{kind}"


def torchvision_old_vit(name):
    return torchvision_vit(name).replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2")


def torchvision_swin(name):
    match name.split("."):
        case ["patch_embed", layer, kind]:
            return f"features.0.{0 if layer == 'proj' else 2}.{kind}"
        case ["layers", s, "downsample", *rest]:
            return ".".join(["features", str(2 * int(s) + 2), *rest])
        case ["layers", s, "blocks", b, *rest]:
            rest = ".".join(rest).replace("fc1", "0").replace("fc2", "3")
            return f"features.{2 * int(s) + 1}.{b}.{rest}"
    return name


def torchvision_convnext(name):
    match name.split("."):
        case ["downsample_layers", s, *rest]:
            return ".".join(["features", str(2 * int(s)), *rest])
        case ["stages", s, b, "gamma"]:
            return f"features.{2 * int(s) + 1}.{b}.layer_scale"
        case ["stages", s, b, layer, kind]:
            place = {"dwconv": 0, "norm": 2, "pwconv1": 3, "pwconv2": 5}[layer]
            return f"features.{2 * int(s) + 1}.{b}.block.{place}.{kind}"
        case ["norm", kind]:
            return f"classifier.0.{kind}"
        case ["head", kind]:
            return f"classifier.2.{kind}"


def timm_stem(name):
    return name.replace("backbone.stem", "backbone")


def timm_swin(name):
    match name.split("."):
        case ["layers", s, "downsample", *rest]:
            return ".".join(["layers", str(int(s) + 1), "downsample", *rest])
        case ["head", kind]:
            return f"head.fc.{kind}"
    return name


def renamed_grn(rest):
    """ConvNeXt V2's gamma and beta are weight and bias in timm and transformers."""
    return [{"gamma": "weight", "beta": "bias"}.get(kind, kind) for kind in rest]


def timm_convnext(name):
    match name.split("."):
        case ["downsample_layers", "0", *rest]:
            return ".".join(["stem", *rest])
        case ["downsample_layers", s, *rest]:
            return ".".join(["stages", s, "downsample", *rest])
        case ["stages", s, b, layer, *rest]:
            renamed = {"dwconv": "conv_dw", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2", "grn": "mlp.grn"}
            return ".".join(["stages", s, "blocks", b, renamed.get(layer, layer), *renamed_grn(rest)])
        case [layer, kind]:
            return f"head.{'norm' if layer == 'norm' else 'fc'}.{kind}"


def hugging_face_block(layer, version):
    """The name of a layer of a transformer block in version 4 or 5 of transformers."""
    return {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.qkv": {4: "attention.attention.{}", 5: "attention.{}_proj"}[version],
        "attn.proj": {4: "attention.output.dense", 5: "attention.o_proj"}[version],
        "mlp.fc1": {4: "intermediate.dense", 5: "mlp.fc1"}[version],
        "mlp.fc2": {4: "output.dense", 5: "mlp.fc2"}[version],
    }[layer]


def hugging_face_vit(name, version=5):
    match name.split("."):
        case ["cls_token"]:
            return "vit.embeddings.cls_token"
        case ["pos_embed"]:
            return "vit.embeddings.position_embeddings"
        case ["patch_embed", "proj", kind]:
            return f"vit.embeddings.patch_embeddings.projection.{kind}"
        case ["blocks", i, *layer, kind]:
            blocks = {4: "vit.encoder.layer", 5: "vit.layers"}[version]
            return f"{blocks}.{i}.{hugging_face_block('.'.join(layer), version)}.{kind}"
        case ["norm", kind]:
            return f"vit.layernorm.{kind}"
        case ["head", kind]:
            return f"classifier.{kind}"


def hugging_face_4_vit(name):
    return hugging_face_vit(name, version=4)


def hugging_face_vit_model(name):
    """ViTModel: no head, but a pre-logits layer."""
    return f"pooler.dense.{name.split('.')[-1]}" if "pre_logits" in name else hugging_face_vit(name)[len("vit.") :]


def hugging_face_deit(name, version=5):
    match name.split("."):
        case ["dist_token"]:
            return "deit.embeddings.distillation_token"
        case ["head", kind]:
            return f"cls_classifier.{kind}"
        case ["head_dist", kind]:
            return f"distillation_classifier.{kind}"
    return hugging_face_vit(name, version).replace("vit.", "deit.")


def hugging_face_4_deit(name):
    return hugging_face_deit(name, version=4)


def hugging_face_dinov2(name, version=5, prefix="dinov2."):
    match name.split("."):
        case ["reg_token"]:
            return f"{prefix}embeddings.register_tokens"
        case ["blocks", i, *layer]:
            renamed = {"attn.qkv": {4: "attention.attention.{}", 5: "attention.{}_proj"}[version]}
            renamed |= {"attn.proj": {4: "attention.output.dense", 5: "attention.o_proj"}[version]}
            layer = (
                ".".join(layer)
                .replace("ls1.gamma", "layer_scale1.lambda1")
                .replace("ls2.gamma", "layer_scale2.lambda1")
            )
            for own, theirs in renamed.items():
                layer = layer.replace(own, theirs)
            return f"{prefix}encoder.layer.{i}.{layer}"
    return hugging_face_vit(name, version).replace("vit.", prefix)


def hugging_face_4_dinov2(name):
    return hugging_face_dinov2(name, version=4)


def hugging_face_gated_dinov2(name):
    return hugging_face_dinov2(name).replace("mlp.fc1", "mlp.{half}_proj").replace("mlp.fc2", "mlp.down_proj")


def hugging_face_4_gated_dinov2(name):
    return hugging_face_4_dinov2(name).replace("mlp.fc1", "mlp.weights_in").replace("mlp.fc2", "mlp.weights_out")


def facebook_deit3(name):
    return name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")


def facebook_dinov2(name):
    return name.replace("reg_token", "register_tokens").replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")


def hugging_face_swin(name, version=5):
    match name.split("."):
        case ["patch_embed", layer, kind]:
            return f"swin.embeddings.{'patch_embeddings.projection' if layer == 'proj' else 'norm'}.{kind}"
        case ["layers", s, "blocks", b, "attn", "relative_position_bias_table"]:
            middle = {4: "self", 5: "relative_position_bias"}[version]
            return f"swin.encoder.layers.{s}.blocks.{b}.attention.{middle}.relative_position_bias_table"
        case ["layers", s, "blocks", b, *layer, kind]:
            layer = hugging_face_block(".".join(layer), version).replace("attention.attention", "attention.self")
            return f"swin.encoder.layers.{s}.blocks.{b}.{layer}.{kind}"
        case ["layers", s, "downsample", *rest]:
            return ".".join(["swin.encoder.layers", s, "downsample", *rest])
        case ["norm", kind]:
            return f"swin.layernorm.{kind}"
        case ["head", kind]:
            return f"classifier.{kind}"


def hugging_face_4_swin(name):
    return hugging_face_swin(name, version=4)


def hugging_face_swinv2(name):
    match name.split("."):
        case ["layers", s, "blocks", b, "attn", layer, *rest] if layer not in ("qkv", "proj"):
            theirs = {"q_bias": "query.bias", "v_bias": "value.bias", "cpb_mlp": "continuous_position_bias_mlp"}
            path = f"swinv2.encoder.layers.{s}.blocks.{b}.attention.self"
            return ".".join([path, theirs.get(layer, layer), *rest])
    return hugging_face_swin(name, version=4).replace("swin.", "swinv2.")


def hugging_face_convnextv2(name):
    return hugging_face_convnext(name).replace("convnext.", "convnextv2.")


def hugging_face_convnext(name):
    match name.split("."):
        case ["downsample_layers", "0", i, kind]:
            return f"convnext.embeddings.{('patch_embeddings', 'layernorm')[int(i)]}.{kind}"
        case ["downsample_layers", s, *rest]:
            return ".".join(["convnext.encoder.stages", s, "downsampling_layer", *rest])
        case ["stages", s, b, layer, *rest]:
            layer = {"gamma": "layer_scale_parameter", "norm": "layernorm"}.get(layer, layer)
            return ".".join(["convnext.encoder.stages", s, "layers", b, layer, *renamed_grn(rest)])
        case ["norm", kind]:
            return f"convnext.layernorm.{kind}"
        case ["head", kind]:
            return f"classifier.{kind}"


def written(model: nn.Module, rename: Callable[[str], str], words: Sequence[str] = ("q", "k", "v")) -> Arrays:
    """The formula weights of a model under a library's names; `words` are the library's names of q, k and v."""
    entries: Arrays = {}
    for name, tensor in formula.fill(model).state_dict().items():
        theirs, x = rename(name), tensor.numpy().copy()
        parts = words if "{}" in theirs else ("gate", "up") if "{half}" in theirs else ("",)
        arrays = zip(parts, np.split(x, len(parts)), strict=True)
        entries |= {theirs.format(part, half=part): array for part, array in arrays}
    return entries


def with_class_position(entries: Arrays, token: str, positions: str) -> Arrays:
    """The form of DINOv2 with registers in which the class token has a position embedding, here half of the token."""
    half = entries[token] / 2
    return entries | {token: half, positions: np.concatenate([half, entries[positions]], axis=1)}


def torchvision_swinv2_file(model: nn.Module) -> Arrays:
    """The layout of torchvision's Swin V2: q_bias and v_bias in one array, with a bias of k that has no effect."""
    entries = written(model, torchvision_swin)
    for name in [name for name in entries if name.endswith("q_bias")]:
        path = name.removesuffix("q_bias")
        q, v = entries.pop(name), entries.pop(f"{path}v_bias")
        entries[f"{path}qkv.bias"] = np.concatenate([q, np.ones_like(q), v])
    return entries


def facebook_convnextv2_file(model: nn.Module) -> Arrays:
    """The layout of the authors' ConvNeXt V2: γ and β of GRN have the shape (1, 1, 1, C)."""
    return {name: x[None, None, None] if ".grn." in name else x for name, x in written(model, ours).items()}


def jax(model: nn.Module, attention: int = 1, second_norm: int = 2, mlp: int = 3) -> Arrays:
    """The layout of Google's JAX code: output channels are the last axis, heads are a separate axis."""
    entries: Arrays = {}
    heads = model.blocks[0].attn.num_heads

    def put(path: str, kind: str, x: np.ndarray) -> None:
        leaf = "bias" if kind == "bias" else "scale" if x.ndim == 1 else "kernel"
        x = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T  # OIHW -> HWIO, (out, in) -> (in, out)
        entries[f"{path}/{leaf}"] = x.reshape(1, 1, 1, -1) if "/gn" in path else x

    for name, tensor in formula.fill(model).state_dict().items():
        *layer, kind = name.split(".")
        x = tensor.numpy().copy()
        match layer:
            case []:
                entries[{"cls_token": "cls", "pos_embed": "Transformer/posembed_input/pos_embedding"}[kind]] = x
            case ["patch_embed", "proj"]:
                put("embedding", kind, x)
            case ["patch_embed", "backbone", "stem", part]:
                put({"conv": "conv_root", "norm": "gn_root"}[part], kind, x)
            case ["patch_embed", "backbone", "stages", s, "blocks", b, *part]:
                renamed = {"downsample.conv": "conv_proj", "downsample.norm": "gn_proj"}
                part = renamed.get(".".join(part), part[0].replace("norm", "gn"))
                put(f"block{int(s) + 1}/unit{int(b) + 1}/{part}", kind, x)
            case ["blocks", i, "attn", "qkv"]:
                path = f"Transformer/encoderblock_{i}/MultiHeadDotProductAttention_{attention}"
                for word, third in zip(("query", "key", "value"), np.split(x, 3), strict=True):
                    if kind == "bias":
                        entries[f"{path}/{word}/bias"] = third.reshape(heads, -1)
                    else:
                        entries[f"{path}/{word}/kernel"] = third.T.reshape(len(third), heads, -1)
            case ["blocks", i, "attn", "proj"]:
                path = f"Transformer/encoderblock_{i}/MultiHeadDotProductAttention_{attention}/out"
                put(path, kind, x)
                if kind == "weight":
                    entries[f"{path}/kernel"] = x.T.reshape(heads, -1, len(x))
            case ["blocks", i, "mlp", part]:
                put(f"Transformer/encoderblock_{i}/MlpBlock_{mlp}/Dense_{int(part[-1]) - 1}", kind, x)
            case ["blocks", i, part]:
                number = 0 if part == "norm1" else second_norm
                put(f"Transformer/encoderblock_{i}/LayerNorm_{number}", kind, x)
            case ["norm"]:
                put("Transformer/encoder_norm", kind, x)
            case ["pre_logits", "fc"] | ["head"]:
                put(layer[0], kind, x)
            case _:
                raise AssertionError(name)
    return entries


def big_vision(model: nn.Module) -> Arrays:
    """The layout of big_vision: other layer numbers, no position of the class token, blocks stacked in one array."""
    blocks: dict[str, list[np.ndarray]] = {}
    entries: Arrays = {}
    for name, x in jax(model, attention=0, second_norm=1, mlp=0).items():
        if "encoderblock_" in name:
            blocks.setdefault(re.sub(r"encoderblock_\d+", "encoderblock", name), []).append(x)
        else:
            entries[name] = x
    entries["pos_embedding"] = entries.pop("Transformer/posembed_input/pos_embedding")[:, 1:]
    entries |= {name: np.stack(each) for name, each in blocks.items()}
    return {f"params/{name}": x for name, x in entries.items()}


# The second of three Swin stages lies between two downsample layers; the layout decides which belongs to the stage.
_SWIN = {"depths": (2, 1, 1), "num_heads": (2, 2, 4)}
_NAMES_OF_4 = ("query", "key", "value")
_GATED = {"num_classes": 0, "reg_tokens": 0, "no_embed_class": False}
_MLP = _GATED | {"mlp_layer": Mlp, "mlp_ratio": 4.0}
FILES = {
    "minigrad": ("vit", {"representation_size": 20}, lambda m: written(m, ours)),
    "timm's hybrid": ("hybrid", {}, lambda m: written(m, ours)),
    "timm's stem": ("hybrid", {"layers": (), "channels": ()}, lambda m: written(m, timm_stem)),
    "Microsoft": ("swin", _SWIN, lambda m: written(m, ours)),
    "Facebook": ("convnext", {}, lambda m: written(m, ours)),
    "timm's Swin": ("swin", _SWIN, lambda m: written(m, timm_swin)),
    "timm's ConvNeXt": ("convnext", {}, lambda m: written(m, timm_convnext)),
    "torchvision's ViT": ("vit", {"representation_size": 20}, lambda m: written(m, torchvision_vit)),
    "torchvision's old ViT": ("vit", {}, lambda m: written(m, torchvision_old_vit)),
    "torchvision's Swin": ("swin", _SWIN, lambda m: written(m, torchvision_swin)),
    "torchvision's ConvNeXt": ("convnext", {}, lambda m: written(m, torchvision_convnext)),
    "HF 5 ViT": ("vit", {}, lambda m: written(m, hugging_face_vit)),
    "HF 4 ViT": ("vit", {}, lambda m: written(m, hugging_face_4_vit, _NAMES_OF_4)),
    "HF 5 ViTModel": (
        "vit", {"num_classes": 0, "representation_size": 24}, lambda m: written(m, hugging_face_vit_model)
    ),
    "Facebook's DeiT": ("distilled", {}, lambda m: written(m, ours)),
    "Facebook's DeiT III": ("deit3", {}, lambda m: written(m, facebook_deit3)),
    "timm's DeiT III": ("deit3", {}, lambda m: written(m, ours)),
    "timm's DINOv2": ("dinov2", {}, lambda m: written(m, ours)),
    "Facebook's DINOv2": ("dinov2", _MLP, lambda m: written(m, ours) | {"mask_token": np.zeros((1, 24))}),
    "Facebook's gated DINOv2": ("dinov2", _GATED, lambda m: written(m, facebook_dinov2)),
    "HF 5 DeiT": ("distilled", {}, lambda m: written(m, hugging_face_deit)),
    "HF 4 DeiT": ("distilled", {}, lambda m: written(m, hugging_face_4_deit, _NAMES_OF_4)),
    "HF 5 DINOv2": ("dinov2", _MLP, lambda m: written(m, hugging_face_dinov2)),
    "HF 4 DINOv2": ("dinov2", _MLP, lambda m: written(m, hugging_face_4_dinov2, _NAMES_OF_4)),
    "HF 5 gated DINOv2": ("dinov2", _GATED, lambda m: written(m, hugging_face_gated_dinov2)),
    "HF 4 gated DINOv2": ("dinov2", _GATED, lambda m: written(m, hugging_face_4_gated_dinov2, _NAMES_OF_4)),
    "HF 5 Swin": ("swin", _SWIN, lambda m: written(m, hugging_face_swin)),
    "HF 4 Swin": ("swin", _SWIN, lambda m: written(m, hugging_face_4_swin, _NAMES_OF_4)),
    "HF ConvNeXt": ("convnext", {}, lambda m: written(m, hugging_face_convnext)),
    "Microsoft's Swin V2": ("swinv2", _SWIN, lambda m: written(m, ours)),
    "timm's Swin V2": ("swinv2", _SWIN, lambda m: written(m, timm_swin)),
    "torchvision's Swin V2": ("swinv2", _SWIN, torchvision_swinv2_file),
    "HF Swin V2": ("swinv2", _SWIN, lambda m: written(m, hugging_face_swinv2, _NAMES_OF_4)),
    "Facebook's ConvNeXt V2": ("convnextv2", {}, facebook_convnextv2_file),
    "timm's ConvNeXt V2": ("convnextv2", {}, lambda m: written(m, timm_convnext)),
    "HF ConvNeXt V2": ("convnextv2", {}, lambda m: written(m, hugging_face_convnextv2)),
    "JAX ViT": ("vit", {"representation_size": 20}, jax),
    "JAX hybrid": ("hybrid", {"layers": (2, 1)}, jax),
}  # fmt: skip


def file_of(layout: str) -> tuple[models.ImageModel, Arrays]:
    """A newly initialized model in float64, and the arrays of a file for it."""
    family, overrides, write = FILES[layout]
    return small(family, **overrides).to(dtype=np.float64), write(small(family, **overrides))


def assert_has_formula_weights(model, except_for=()):
    for name, parameter in model.named_parameters():
        if name not in except_for:
            np.testing.assert_array_equal(parameter.numpy(), formula.weight(name, *parameter.shape), err_msg=name)


def values(model) -> Arrays:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def refusal(model, weights, **options) -> str:
    """The message of the ValueError that load_weights raises. Checks that the model is unchanged."""
    before = values(model)
    with pytest.raises(ValueError) as error:
        models.load_weights(model, weights, **options)
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    return str(error.value)
