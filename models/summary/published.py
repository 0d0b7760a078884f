"""L6: published accuracy on ImageNet-1k by model name, each figure with its source.

The figures are the authors', for their own weights. `data` is "IN-1k" without pre-training, "FCMAE" after pre-training
on masked images of ImageNet-1k without labels (ConvNeXt V2), else the dataset of the pre-training, before fine-tuning
on ImageNet-1k at `img_size`. With SWAG, DINO (ImageNet-1k without labels) and LVD-142M (images without labels), the
head alone is trained. Of several figures, the table of `python -m models` shows the first.
"""

from typing import NamedTuple

from models import roadmap


class Result(NamedTuple):
    """One published accuracy."""

    top1: float  # in %
    data: str
    img_size: int
    source: str


_PAPER, _GOOGLE, _AUGREG = "arXiv:2010.11929, table 5", "vision_transformer README", "AugReg README"
_SWIN, _CONVNEXT, _TORCHVISION = "Swin-Transformer README", "ConvNeXt README", "torchvision weights"
_CONVNEXTV2 = "ConvNeXt-V2 README"
_DEIT, _DEIT3, _DINO, _DINOV2 = "DeiT README", "DeiT III README", "DINO README", "DINOv2 README"
SOURCES = {  # where to find a source without an arXiv number
    _GOOGLE: "github.com/google-research/vision_transformer, models of arXiv:2010.11929",
    _AUGREG: "github.com/google-research/vision_transformer, models of arXiv:2106.10270",
    _DEIT: "github.com/facebookresearch/deit, README_deit.md, models of arXiv:2012.12877",
    _DEIT3: "github.com/facebookresearch/deit, README_revenge.md, models of arXiv:2204.07118",
    _DINO: "github.com/facebookresearch/dino, models of arXiv:2104.14294, linear classifier",
    _DINOV2: "github.com/facebookresearch/dinov2, models of arXiv:2304.07193 and arXiv:2309.16588, linear classifier",
    _SWIN: "github.com/microsoft/Swin-Transformer, models of arXiv:2103.14030 and arXiv:2111.09883",
    _CONVNEXT: "github.com/facebookresearch/ConvNeXt, models of arXiv:2201.03545",
    _CONVNEXTV2: "github.com/facebookresearch/ConvNeXt-V2, models of arXiv:2301.00808",
    _TORCHVISION: "the metadata in torchvision.models, such as ViT_B_16_Weights.IMAGENET1K_V1.meta",
}

PUBLISHED = {
    "vit_tiny_patch16_384": [Result(78.22, "IN-21k", 384, _AUGREG)],
    "vit_small_patch16_384": [Result(83.73, "IN-21k", 384, _AUGREG)],
    "vit_small_patch32_384": [Result(79.58, "IN-21k", 384, _AUGREG)],
    "vit_small_patch16_224": [Result(77.0, "DINO", 224, _DINO)],
    "vit_small_patch8_224": [Result(79.7, "DINO", 224, _DINO)],
    "vit_base_patch8_224": [Result(80.1, "DINO", 224, _DINO)],
    "vit_base_patch16_224": [Result(81.072, "IN-1k", 224, _TORCHVISION), Result(78.2, "DINO", 224, _DINO)],
    "vit_base_patch16_384": [
        Result(83.97, "IN-21k", 384, _PAPER),
        Result(85.49, "IN-21k", 384, _AUGREG),
        Result(77.91, "IN-1k", 384, _PAPER),
        Result(84.15, "JFT-300M", 384, _PAPER),
    ],
    "vit_base_patch32_224": [Result(75.912, "IN-1k", 224, _TORCHVISION)],
    "vit_base_patch32_384": [
        Result(81.28, "IN-21k", 384, _PAPER),
        Result(83.59, "IN-21k", 384, _AUGREG),
        Result(73.38, "IN-1k", 384, _PAPER),
        Result(80.73, "JFT-300M", 384, _PAPER),
    ],
    "vit_large_patch16_224": [Result(79.662, "IN-1k", 224, _TORCHVISION)],
    "vit_large_patch16_384": [
        Result(85.15, "IN-21k", 384, _PAPER),
        Result(85.59, "IN-21k", 384, _AUGREG),
        Result(76.53, "IN-1k", 384, _PAPER),
        Result(87.12, "JFT-300M", 384, _PAPER),
    ],
    "vit_large_patch32_224": [Result(76.972, "IN-1k", 224, _TORCHVISION)],
    "vit_large_patch32_384": [
        Result(80.99, "IN-21k", 384, _PAPER),
        Result(71.16, "IN-1k", 384, _PAPER),
        Result(84.37, "JFT-300M", 384, _PAPER),
    ],
    "vit_huge_patch14_224": [Result(85.708, "SWAG", 224, _TORCHVISION)],  # hashtags, arXiv:2201.08371
    "deit_tiny_patch16_224": [Result(72.2, "IN-1k", 224, _DEIT)],
    "deit_small_patch16_224": [Result(79.9, "IN-1k", 224, _DEIT)],
    "deit_base_patch16_224": [Result(81.8, "IN-1k", 224, _DEIT)],
    "deit_base_patch16_384": [Result(82.9, "IN-1k", 384, _DEIT)],
    "deit_tiny_distilled_patch16_224": [Result(74.5, "IN-1k", 224, _DEIT)],
    "deit_small_distilled_patch16_224": [Result(81.2, "IN-1k", 224, _DEIT)],
    "deit_base_distilled_patch16_224": [Result(83.4, "IN-1k", 224, _DEIT)],
    "deit_base_distilled_patch16_384": [Result(85.2, "IN-1k", 384, _DEIT)],
    "deit3_small_patch16_224": [Result(81.4, "IN-1k", 224, _DEIT3), Result(83.1, "IN-21k", 224, _DEIT3)],
    "deit3_small_patch16_384": [Result(83.4, "IN-1k", 384, _DEIT3), Result(84.8, "IN-21k", 384, _DEIT3)],
    "deit3_base_patch16_224": [Result(83.8, "IN-1k", 224, _DEIT3), Result(85.7, "IN-21k", 224, _DEIT3)],
    "deit3_base_patch16_384": [Result(85.0, "IN-1k", 384, _DEIT3), Result(86.7, "IN-21k", 384, _DEIT3)],
    "deit3_large_patch16_224": [Result(84.9, "IN-1k", 224, _DEIT3), Result(87.0, "IN-21k", 224, _DEIT3)],
    "deit3_large_patch16_384": [Result(85.8, "IN-1k", 384, _DEIT3), Result(87.7, "IN-21k", 384, _DEIT3)],
    "deit3_huge_patch14_224": [Result(85.2, "IN-1k", 224, _DEIT3), Result(87.2, "IN-21k", 224, _DEIT3)],
    "vit_small_patch14_dinov2": [Result(81.1, "LVD-142M", 224, _DINOV2)],
    "vit_base_patch14_dinov2": [Result(84.5, "LVD-142M", 224, _DINOV2)],
    "vit_large_patch14_dinov2": [Result(86.3, "LVD-142M", 224, _DINOV2)],
    "vit_giant_patch14_dinov2": [Result(86.5, "LVD-142M", 224, _DINOV2)],
    "vit_small_patch14_reg4_dinov2": [Result(80.9, "LVD-142M", 224, _DINOV2)],
    "vit_base_patch14_reg4_dinov2": [Result(84.6, "LVD-142M", 224, _DINOV2)],
    "vit_large_patch14_reg4_dinov2": [Result(86.7, "LVD-142M", 224, _DINOV2)],
    "vit_giant_patch14_reg4_dinov2": [Result(87.1, "LVD-142M", 224, _DINOV2)],
    "vit_tiny_r_s16_p8_384": [Result(75.40, "IN-21k", 384, _AUGREG)],
    "vit_small_r26_s32_384": [Result(83.85, "IN-21k", 384, _AUGREG)],
    "vit_base_r50_s16_384": [Result(85.08, "IN-21k", 384, _GOOGLE)],
    "vit_large_r50_s32_384": [Result(85.99, "IN-21k", 384, _AUGREG)],
    "swin_tiny_patch4_window7_224": [
        Result(81.2, "IN-1k", 224, _SWIN),
        Result(80.9, "IN-22k", 224, _SWIN),
        Result(81.474, "IN-1k", 224, _TORCHVISION),
    ],
    "swin_small_patch4_window7_224": [
        Result(83.2, "IN-1k", 224, _SWIN),
        Result(83.2, "IN-22k", 224, _SWIN),
        Result(83.196, "IN-1k", 224, _TORCHVISION),
    ],
    "swin_base_patch4_window7_224": [
        Result(83.5, "IN-1k", 224, _SWIN),
        Result(85.2, "IN-22k", 224, _SWIN),
        Result(83.582, "IN-1k", 224, _TORCHVISION),
    ],
    "swin_base_patch4_window12_384": [Result(84.5, "IN-1k", 384, _SWIN), Result(86.4, "IN-22k", 384, _SWIN)],
    "swin_large_patch4_window7_224": [Result(86.3, "IN-22k", 224, _SWIN)],
    "swin_large_patch4_window12_384": [Result(87.3, "IN-22k", 384, _SWIN)],
    "swinv2_tiny_window8_256": [
        Result(81.8, "IN-1k", 256, _SWIN),
        Result(82.072, "IN-1k", 256, _TORCHVISION),
    ],
    "swinv2_tiny_window16_256": [Result(82.8, "IN-1k", 256, _SWIN)],
    "swinv2_small_window8_256": [
        Result(83.7, "IN-1k", 256, _SWIN),
        Result(83.712, "IN-1k", 256, _TORCHVISION),
    ],
    "swinv2_small_window16_256": [Result(84.1, "IN-1k", 256, _SWIN)],
    "swinv2_base_window8_256": [
        Result(84.2, "IN-1k", 256, _SWIN),
        Result(84.112, "IN-1k", 256, _TORCHVISION),
    ],
    "swinv2_base_window16_256": [Result(84.6, "IN-1k", 256, _SWIN)],
    "swinv2_base_window12to16_192to256": [Result(86.2, "IN-22k", 256, _SWIN)],
    "swinv2_base_window12to24_192to384": [Result(87.1, "IN-22k", 384, _SWIN)],
    "swinv2_large_window12to16_192to256": [Result(86.9, "IN-22k", 256, _SWIN)],
    "swinv2_large_window12to24_192to384": [Result(87.6, "IN-22k", 384, _SWIN)],
    "convnext_tiny": [
        Result(82.1, "IN-1k", 224, _CONVNEXT),
        Result(82.9, "IN-22k", 224, _CONVNEXT),
        Result(84.1, "IN-22k", 384, _CONVNEXT),
        Result(82.520, "IN-1k", 224, _TORCHVISION),
    ],
    "convnext_small": [
        Result(83.1, "IN-1k", 224, _CONVNEXT),
        Result(84.6, "IN-22k", 224, _CONVNEXT),
        Result(85.8, "IN-22k", 384, _CONVNEXT),
        Result(83.616, "IN-1k", 224, _TORCHVISION),
    ],
    "convnext_base": [
        Result(83.8, "IN-1k", 224, _CONVNEXT),
        Result(85.1, "IN-1k", 384, _CONVNEXT),
        Result(85.8, "IN-22k", 224, _CONVNEXT),
        Result(86.8, "IN-22k", 384, _CONVNEXT),
        Result(84.062, "IN-1k", 224, _TORCHVISION),
    ],
    "convnext_large": [
        Result(84.3, "IN-1k", 224, _CONVNEXT),
        Result(85.5, "IN-1k", 384, _CONVNEXT),
        Result(86.6, "IN-22k", 224, _CONVNEXT),
        Result(87.5, "IN-22k", 384, _CONVNEXT),
        Result(84.414, "IN-1k", 224, _TORCHVISION),
    ],
    "convnext_xlarge": [Result(87.0, "IN-22k", 224, _CONVNEXT), Result(87.8, "IN-22k", 384, _CONVNEXT)],
    "convnextv2_atto": [Result(76.7, "FCMAE", 224, _CONVNEXTV2)],
    "convnextv2_femto": [Result(78.5, "FCMAE", 224, _CONVNEXTV2)],
    "convnextv2_pico": [Result(80.3, "FCMAE", 224, _CONVNEXTV2)],
    "convnextv2_nano": [
        Result(81.9, "FCMAE", 224, _CONVNEXTV2),
        Result(82.1, "IN-22k", 224, _CONVNEXTV2),
        Result(83.4, "IN-22k", 384, _CONVNEXTV2),
    ],
    "convnextv2_tiny": [
        Result(83.0, "FCMAE", 224, _CONVNEXTV2),
        Result(83.9, "IN-22k", 224, _CONVNEXTV2),
        Result(85.1, "IN-22k", 384, _CONVNEXTV2),
    ],
    "convnextv2_base": [
        Result(84.9, "FCMAE", 224, _CONVNEXTV2),
        Result(86.8, "IN-22k", 224, _CONVNEXTV2),
        Result(87.7, "IN-22k", 384, _CONVNEXTV2),
    ],
    "convnextv2_large": [
        Result(85.8, "FCMAE", 224, _CONVNEXTV2),
        Result(87.3, "IN-22k", 224, _CONVNEXTV2),
        Result(88.2, "IN-22k", 384, _CONVNEXTV2),
    ],
    "convnextv2_huge": [
        Result(86.3, "FCMAE", 224, _CONVNEXTV2),
        Result(88.7, "IN-22k", 384, _CONVNEXTV2),
        Result(88.9, "IN-22k", 512, _CONVNEXTV2),
    ],
} | {
    f"roadmap_{number:02}_{step.name}": [Result(step.top1, "IN-1k", 224, "arXiv:2201.03545, table 10")]
    for number, step in enumerate(roadmap.STEPS)
    if step.top1 is not None
}
