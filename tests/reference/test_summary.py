"""Parameters and multiply-accumulates against PyTorch's counter on the libraries' models, and published accuracies."""

import pytest

import models
from minigrad.nn import init
from models.compare import libraries
from models.registry import model_arguments
from models.summary import cost as summary
from models.summary.published import PUBLISHED
from tests.reference.conftest import skip_without

torch = pytest.importorskip("torch")

WEIGHTS = {  # torchvision's names
    "vit_base_patch16_224": "ViT_B_16_Weights.IMAGENET1K_V1",
    "vit_base_patch32_224": "ViT_B_32_Weights.IMAGENET1K_V1",
    "vit_large_patch16_224": "ViT_L_16_Weights.IMAGENET1K_V1",
    "vit_large_patch32_224": "ViT_L_32_Weights.IMAGENET1K_V1",
    "vit_huge_patch14_224": "ViT_H_14_Weights.IMAGENET1K_SWAG_LINEAR_V1",
    "swin_tiny_patch4_window7_224": "Swin_T_Weights.IMAGENET1K_V1",
    "swin_small_patch4_window7_224": "Swin_S_Weights.IMAGENET1K_V1",
    "swin_base_patch4_window7_224": "Swin_B_Weights.IMAGENET1K_V1",
    "swinv2_tiny_window8_256": "Swin_V2_T_Weights.IMAGENET1K_V1",
    "swinv2_small_window8_256": "Swin_V2_S_Weights.IMAGENET1K_V1",
    "swinv2_base_window8_256": "Swin_V2_B_Weights.IMAGENET1K_V1",
    "convnext_tiny": "ConvNeXt_Tiny_Weights.IMAGENET1K_V1",
    "convnext_small": "ConvNeXt_Small_Weights.IMAGENET1K_V1",
    "convnext_base": "ConvNeXt_Base_Weights.IMAGENET1K_V1",
    "convnext_large": "ConvNeXt_Large_Weights.IMAGENET1K_V1",
}


def pytorch_counts(network, size: int) -> tuple[int, int]:
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), torch.device("meta"):
        network.eval()(torch.empty(1, 3, size, size))
    flops = counter.get_total_flops()  # a multiply-accumulate is two operations
    assert flops % 2 == 0
    return sum(parameter.numel() for parameter in network.parameters()), flops // 2


def minigrad_counts(name: str) -> tuple[int, int]:
    with init.meta_init():
        model = models.create_model(name)
    return summary.parameters(model), summary.macs(model)


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("timm", "vit_tiny_patch16_224"),
        ("timm", "vit_huge_patch14_392"),
        ("torchvision", "vit_base_patch16_224_in21k"),
        ("timm", "deit_tiny_distilled_patch16_224"),
        ("timm", "deit3_huge_patch14_224"),
        ("timm", "vit_giant_patch14_reg4_dinov2"),
        ("timm", "vit_tiny_r_s16_p8_224"),
        ("timm", "vit_base_r50_s16_384"),
        ("timm", "hybrid_cifar"),
        ("timm", "swin_tiny_patch4_window7_224"),
        ("timm", "swin_large_patch4_window12_384_in22k"),
        ("torchvision", "swin_mini_cifar"),
        ("timm", "swinv2_tiny_window16_256"),
        ("timm", "swinv2_base_window12to24_192to384"),
        ("timm", "swinv2_nano_cifar"),
        ("timm", "convnextv2_huge"),
        ("timm", "convnext_atto"),
        ("timm", "convnext_xlarge_in22k"),
        ("torchvision", "convnext_base"),
    ],
)
def test_parameters_and_macs_equal_pytorch(library, name):
    skip_without(library)
    with torch.device("meta"):
        network = libraries.build(library, name)
    assert minigrad_counts(name) == pytorch_counts(network, model_arguments(name)["img_size"])


def test_parameters_and_macs_of_resnet50():
    skip_without("torchvision")
    with torch.device("meta"):
        network = libraries.load("torchvision").models.resnet50()
    assert minigrad_counts("roadmap_00_resnet50") == pytorch_counts(network, 224)


def test_published_accuracies_equal_torchvision():
    skip_without("torchvision")
    get_weight = libraries.load("torchvision").models.get_weight
    published = {name: get_weight(weight).meta["_metrics"]["ImageNet-1K"]["acc@1"] for name, weight in WEIGHTS.items()}
    results = [(name, result) for name, results in PUBLISHED.items() for result in results]
    assert {name: result.top1 for name, result in results if result.source == "torchvision weights"} == published
