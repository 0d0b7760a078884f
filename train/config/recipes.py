"""L7: recipes: presets of hyperparameters for training from scratch on images of about 32 x 32.

    laptop      on two CPU cores, an hour for convnext_micro_cifar and hybrid_micro_cifar, half an hour for
                swin_micro_cifar and vit_micro_cifar, with Muon and light augmentation
    fast        30 epochs, intended for a minute on a large GPU (not measured yet). Short runs do not overfit, so
                augmentation is light: published runs of this length use neither mixup nor RandAugment.
    standard    200 epochs, as in the table of CCT, intended for ten minutes. Runs of this length overfit without strong
                augmentation: published recipes have it too. Half of the batches are mixed.
    long        500 epochs with the same settings, except that all batches are mixed, against more overfitting.

Flags and settings files override a recipe. Weight decay 0.05, gradient clipping at norm 1 and the learning-rate
schedule are the defaults of every run.

Sources of the values:

    AdamW, weight decay 0.05, label smoothing 0.1, drop path 0.1, random erasing 0.25, half of the batches mixed: with
        these settings a ViT of 2.7 M parameters reaches 93.58 % and a Swin of 7 M 94.46 % (Lee, Lee, Song 2021,
        arXiv:2112.13492, and its code, where an epoch has every image three times: their 100 epochs are 300)
    RandAugment of magnitude 9, noise 0.5, all ops increasing; mixup 0.8, CutMix 1, all batches mixed in long runs: DeiT
        (Touvron et al. 2020, arXiv:2012.12877), Swin, ConvNeXt, and the runs of 300 epochs of CCT (Hassani et al. 2021,
        arXiv:2104.05704: 96.53 %). RandAugment alone improved a ViT of 0.8 M from 82.5 to 86.3 % (s-chh, on GitHub)
    only cutout, flips and random crops in the shortest runs: the fast convolutional networks of K. Jordan
        (arXiv:2404.00498), which reach 94 % within 10 epochs
    an EMA over the last 2 to 20 epochs, 1 / (1 - decay) steps (in `laptop`, 0.6 epochs): ConvNeXt's decay 0.9999 is for
        runs of 94,000 steps, `standard` has 19,600
    learning rates: with AdamW, at 128 images a step, arXiv:2112.13492 uses 1e-3 for ViT and Swin. A learning-rate range
        test, 1e-5 to 1e-1 in 80 steps of 128 images (CIFAR-10, JPEG-compressed; one run each, seed 0), stopped
        improving the loss at 2.4e-3 for vit_micro_cifar (then with mlp_ratio 4), at 7.7e-3 for hybrid_nano_cifar, and
        at 7e-4 for swin_nano_cifar and convnext_atto_cifar (then with layer scale 1e-6): so the first two have a higher
        learning rate. In short runs on a few thousand of these images, at 1e-3, 2e-3 and 4e-3, the last training loss
        was 1.80, 1.75 and 1.75 for vit_nano_cifar (mean of two seeds that differ by 0.01; 313 steps of 128 images),
        1.99, 1.98 and 1.97 for swin_nano_cifar (188 steps of 128), and 2.05, 2.10 and 2.12 for hybrid_nano_cifar (96
        steps of 64). Larger batches allow larger learning rates: the values in the table are conservative
    SGD, in `BY_OPTIMIZER`: learning rate 0.1, Nesterov momentum 0.9 and weight decay 5e-4 are those of Wide ResNets on
        CIFAR (Zagoruyko and Komodakis 2016, arXiv:1605.07146)
    Adam without weight decay, as in PyTorch: Adam divides an L2 penalty by the size of the gradient, so that 0.05
        outweighs the loss
    batch sizes and the number of epochs of `fast`: chosen here
    `laptop`: optimizer, learning rate and the arguments of the models are the best of a search by short runs on
        CIFAR-10 (tests/benchmarks/search.py, its log .github/logs/search.csv, its results in train/README.md). The
        number of epochs follows from the CPU time of a step. Not compared: larger batches, smoothing, the decay of the
        EMA. Without cutout, ConvNeXt reached 87.0 % in 30 epochs, with 97 % of the training images, and the hybrid
        86.3 % in 22 epochs, with 94 %; with cutout, 88.6 % in 60 epochs, with 98 %, and 87.9 % in 36, with 93 %. Cutout
        and the number of epochs were not varied separately, nor for Swin and ViT

What that search says about `fast`, `standard` and `long`, which have not been run on a GPU (differences in accuracy
after 60 s on one core, less than one epoch):

    layer scale: 1 instead of 1e-6 gains 8 points with the settings of `fast`, so the CIFAR models of ConvNeXt start at
        1. After 200 epochs the difference may be smaller: unproven
    stem: patches of 2 x 2 and overlapping ones of 3 x 3 are equal, so the models keep 2 x 2
    optimizer: Muon gains 4 to 12 points over AdamW at the same learning rate. Muon does not run in a CUDA graph, so
        these recipes keep AdamW; without a graph, and for 200 epochs: unproven
    learning rate: for AdamW the search had 2e-3 alone, on batches of 64; the values here rest on the sources above
    batch size, drop path, RandAugment, mixup, CutMix, erasing, decay of the EMA: of the sources, unproven here
"""

from typing import Any

NAMES = ("laptop", "fast", "standard", "long")

# The settings of each recipe, in the order of NAMES.
TABLE: dict[str, tuple[Any, Any, Any, Any]] = {
    "epochs":       (60,        30,         200,                      500),
    "batch_size":   (64,        256,        512,                      512),
    "opt":          ("muon",    "adamw",    "adamw",                  "adamw"),
    "lr":           (5e-3,      1e-3,       1e-3,                     1e-3),
    "warmup_epochs": (2.0,      3.0,        10.0,                     20.0),
    "smoothing":    (0.1,       0.1,        0.1,                      0.1),
    "drop_path":    (0.0,       0.0,        0.1,                      0.1),
    "hflip":        (0.5,       0.5,        0.5,                      0.5),
    "crop_padding": (4,         4,          4,                        4),
    "aa":           ("none",    "none",     "rand-m9-mstd0.5-inc1",   "rand-m9-mstd0.5-inc1"),
    "cutout":       (8,         8,          0,                        0),
    "reprob":       (0.0,       0.0,        0.25,                     0.25),
    "mixup":        (0.0,       0.0,        0.8,                      0.8),
    "cutmix":       (0.0,       0.0,        1.0,                      1.0),
    "mixup_prob":   (1.0,       1.0,        0.5,                      1.0),
    "model_ema":    (True,      True,       True,                     True),
    "model_ema_decay": (0.998,  0.998,      0.999,                    0.9995),
}  # fmt: skip

_HIGHER_LR = {"lr": (5e-3, 1.5e-3, 1.5e-3, 1.5e-3)}
BY_FAMILY: dict[str, dict[str, tuple[Any, Any, Any, Any]]] = {
    "vit": {"epochs": (28, 30, 200, 500)} | _HIGHER_LR,
    "hybrid": {"epochs": (36, 30, 200, 500)} | _HIGHER_LR,
    "swin": {"epochs": (30, 30, 200, 500)},
}
"""Overrides for some models, by the first part of their names."""

BY_OPTIMIZER: dict[str, dict[str, float]] = {
    "sgd": {"lr": 0.1, "weight_decay": 5e-4},
    "adam": {"weight_decay": 0.0},
}
"""Overrides of defaults and recipes, whose values are for AdamW, by the name of the optimizer."""


def recipe(name: str, model: str) -> dict[str, Any]:
    """The settings of the recipe `name` for the model of name `model`."""
    if name == "none":
        return {}
    column, family = NAMES.index(name), model.split("_")[0]
    return {setting: values[column] for setting, values in (TABLE | BY_FAMILY.get(family, {})).items()}
