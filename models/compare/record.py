"""L6: record the goldens:  python -m models.compare.record  (needs torch, torchvision, timm and transformers)

A golden records only the library; our models do not run here.
"""

from typing import Any, NamedTuple

from models.compare import formula, golden
from models.compare.golden import Fingerprint, Golden, fingerprint
from models.compare.references import Reference
from models.compare.trace import Arrays, channels, loss_weights, outer_layers, to_rows
from models.terminal import ArgumentParser, escape_unencodable

ENTRIES = {"logits": 16, "images": 8}  # elements in a fingerprint; for other outputs 4, for other gradients none


class Case(NamedTuple):
    """A run to record: the library, the arguments of `create_model`, and the stream and shape of the images."""

    library: str
    model: str
    overrides: dict[str, Any]
    stream: str
    shape: tuple[int, int, int, int]


_VIT, _HYBRID = "vit_tiny_patch16_224", "vit_base_r50_s16_224"
_DISTILLED, _DEIT3 = "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"
_DINOV2, _REG4 = "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"
_GIANT = "vit_giant_patch14_dinov2"
_SWIN, _CONVNEXT = "swin_tiny_patch4_window7_224", "convnext_tiny"
_SWINV2, _CONVNEXTV2 = "swinv2_tiny_window8_256", "convnextv2_tiny"
_TRANSFORMER = {"embed_dim": 24, "depth": 2, "num_heads": 3}
_REDUCED: dict[str, dict[str, Any]] = {
    _VIT: {"patch_size": 8} | _TRANSFORMER,
    **{model: {"patch_size": 8} | _TRANSFORMER for model in (_DISTILLED, _DEIT3)},
    **dict.fromkeys((_DINOV2, _REG4, _GIANT), _TRANSFORMER),
    _HYBRID: {"layers": (1, 2, 2), "channels": (128, 256, 512), "stem_chs": 32} | _TRANSFORMER,
    _SWIN: {"embed_dim": 24, "depths": (2, 2), "num_heads": (3, 6)},
    _CONVNEXT: {"depths": (1, 2, 2, 1), "dims": (8, 16, 24, 40)},
}
_REDUCED |= {_SWINV2: _REDUCED[_SWIN], _CONVNEXTV2: _REDUCED[_CONVNEXT]}


def small(library: str, model: str, stream: str, B: int, H: int, W: int, **overrides: Any) -> Case:
    """A case with a reduced model that runs fast."""
    sizes = {"img_size": H if H == W else (H, W), "num_classes": 7}
    return Case(library, model, sizes | _REDUCED[model] | overrides, stream, (B, 3, H, W))


def named(library: str, model: str, side: int) -> Case:
    """A case with an unmodified registered model and one image."""
    return Case(library, model, {}, f"x.{model}", (1, 3, side, side))


CASES = {
    "vit": small("torchvision", _VIT, "x.vit", 2, 32, 32),
    "vit_pre_logits": small("torchvision", _VIT, "x.vit", 2, 32, 32, representation_size=20),
    "vit_avg": small("timm", _VIT, "x.vit", 2, 32, 32, global_pool="avg"),
    "vit_oblong": small("timm", _VIT, "x.vit.24.40", 2, 24, 40, qkv_bias=False, mlp_ratio=2.0),
    "deit_distilled": small("timm", _DISTILLED, "x.deit", 2, 32, 24),
    "deit3": small("timm", _DEIT3, "x.deit", 2, 32, 24),
    "deit3_avg": small("timm", _DEIT3, "x.deit3.avg", 2, 24, 32, global_pool="avg"),
    "dinov2": small("transformers", _DINOV2, "x.dinov2.42.42", 2, 42, 42, num_classes=0),
    "dinov2_registers": small("timm", _REG4, "x.dinov2", 2, 42, 28),
    "dinov2_registers_avg": small("timm", _REG4, "x.dinov2", 2, 42, 28, global_pool="avg", no_embed_class=False),
    "dinov2_swiglu": small("timm", _GIANT, "x.dinov2.42.42", 2, 42, 42, num_classes=0),
    "hybrid_64x64": small("timm", _HYBRID, "x.hyb.64.64", 2, 64, 64),
    "hybrid_50x70": small("timm", _HYBRID, "x.hyb.50.70", 2, 50, 70),
    "hybrid_63x33": small("timm", _HYBRID, "x.hyb.63.33", 2, 63, 33),
    "hybrid_stem_2": small(
        "timm", _HYBRID, "x.hyb.33.32", 2, 33, 32, stem_stride=2, layers=(1, 1), channels=(128, 256)
    ),
    "convnext_64x64": small("torchvision", _CONVNEXT, "x.cnx.64.64", 2, 64, 64),
    "convnext_70x45": small("torchvision", _CONVNEXT, "x.cnx.70.45", 1, 70, 45),
    "convnext_stem_2": small("torchvision", _CONVNEXT, "x.cnx.32.32", 2, 32, 32, stem_size=2),
    "convnext_overlapping_stem": small(
        "torchvision", _CONVNEXT, "x.cnx.32.32", 2, 32, 32, stem_size=2, stem_kernel_size=3
    ),
    "convnextv2_64x64": small("timm", _CONVNEXTV2, "x.cnx.64.64", 2, 64, 64),
    "convnextv2_70x45": small("timm", _CONVNEXTV2, "x.cnx.70.45", 1, 70, 45),
    "swin_64x64": small("torchvision", _SWIN, "x.swin.64.64", 2, 64, 64, window_size=4),
    "swin_map_is_window": small("torchvision", _SWIN, "x.swin.32.32", 2, 32, 32, window_size=4),
    "swin_36x44": small("torchvision", _SWIN, "x.swin.36.44", 2, 36, 44, window_size=4),
    "swin_40x40": small("torchvision", _SWIN, "x.swin.40.40", 2, 40, 40, window_size=4),
    "swin_28x28": small("torchvision", _SWIN, "x.swin.28.28", 2, 28, 28, window_size=4),
    "swin_30x50": small("torchvision", _SWIN, "x.swin.30.50", 2, 30, 50, window_size=4),
    "swin_34x54": small("transformers", _SWIN, "x.swin.34.54", 2, 34, 54, window_size=4),
    "swin_map_below_window": small("torchvision", _SWIN, "x.swin.16.16", 2, 16, 16, window_size=4),
    "swin_24x24_window_7": small("torchvision", _SWIN, "x.swin.24.24", 2, 24, 24, window_size=7),
    "swinv2_64x64": small("timm", _SWINV2, "x.swin.64.64", 2, 64, 64, window_size=4),
    "swinv2_32x64": small("timm", _SWINV2, "x.swin.32.64", 2, 32, 64, window_size=4, qkv_bias=False),
    "swinv2_map_below_window": small("timm", _SWINV2, "x.swin.32.32", 2, 32, 32, window_size=8),
    "swinv2_pretrained_windows": small(
        "timm", _SWINV2, "x.swin.64.64", 2, 64, 64, window_size=8, pretrained_window_sizes=(4, 3)
    ),
    "swinv2_40x52": small("torchvision", _SWINV2, "x.swin.40.52", 2, 40, 52, window_size=4),
    "vit_tiny_patch16_224": named("timm", "vit_tiny_patch16_224", 224),
    "swin_tiny_patch4_window7_224": named("torchvision", "swin_tiny_patch4_window7_224", 224),
    "convnext_tiny": named("torchvision", "convnext_tiny", 224),
    "swinv2_tiny_window8_256": named("timm", "swinv2_tiny_window8_256", 256),
    "convnextv2_tiny": named("timm", "convnextv2_tiny", 224),
    "vit_tiny_r_s16_p8_224": named("timm", "vit_tiny_r_s16_p8_224", 224),
    "vit_tiny_cifar": named("torchvision", "vit_tiny_cifar", 32),
    "swin_tiny_cifar": named("torchvision", "swin_tiny_cifar", 32),
    "convnext_atto_cifar": named("torchvision", "convnext_atto_cifar", 32),
    "swinv2_tiny_cifar": named("timm", "swinv2_tiny_cifar", 32),
    "convnextv2_atto_cifar": named("timm", "convnextv2_atto_cifar", 32),
    "hybrid_cifar": named("timm", "hybrid_cifar", 32),
}


def record(case: Case) -> Golden:
    """Run a case in its library."""
    reference = Reference(case.library, case.model, **case.overrides)
    found = reference.trace(formula.stream(case.stream, *case.shape))
    width = channels(reference.model)

    def fingerprints(arrays: Arrays, entries: int) -> dict[str, Fingerprint]:
        recorded = {}
        for name in outer_layers(reference.model, arrays):
            x, *others = to_rows(arrays[name], width[name]) if name in width else [arrays[name]]
            if not others:  # otherwise C = W, and the layout is ambiguous
                recorded[name] = fingerprint(name, x, ENTRIES.get(name, entries))
        return recorded

    logits = found.outputs["logits"]
    return Golden(
        case.library, reference.version, case.model, case.overrides, case.stream, list(case.shape),
        loss=float((logits * loss_weights(logits.shape)).sum()),
        outputs=fingerprints(found.outputs, 4), gradients=fingerprints(found.gradients, 0),
        parameters={name: fingerprint(name, x, 0) for name, x in found.parameters.items()},
    )  # fmt: skip


def main() -> None:
    """Record all goldens, or the named ones."""
    escape_unencodable()
    parser = ArgumentParser(prog="python -m models.compare.record", description="Record the goldens.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="goldens to record (default: all)")
    names = parser.parse_args().names or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"there is no golden {unknown[0]!r}; there are {', '.join(CASES)}")
    for name in names:
        golden.save(name, record(CASES[name]))
        print(f"{name:32} {(golden.FOLDER / f'{name}.json').stat().st_size / 1024:6.1f} KB")


if __name__ == "__main__":
    main()
