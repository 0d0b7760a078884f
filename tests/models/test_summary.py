"""The costs of the models, against figures counted by other programs, and the table of costs."""

import csv
import io
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import minigrad
import models
from minigrad import functional as F
from minigrad import nn
from minigrad.nn import init
from models.__main__ import FAMILIES, main
from models.registry import model_arguments, model_class, registered
from models.summary import cost as summary
from models.summary import summary as summary_of
from models.summary.published import PUBLISHED, SOURCES

# Parameters, and 10⁹ multiply-accumulates at the model's own size, counted on timm's and torchvision's models by
# PyTorch's FlopCounterMode. The costs of the roadmap are in test_roadmap.py.
COSTS = {
    "vit_tiny_patch16_224": (5_717_416, 1.254), "vit_tiny_patch16_384": (5_790_376, 4.682),
    "vit_small_patch16_224": (22_050_664, 4.599), "vit_small_patch16_384": (22_196_584, 15.490),
    "vit_small_patch32_224": (22_878_952, 1.143), "vit_small_patch32_384": (22_915_432, 3.443),
    "vit_base_patch16_224": (86_567_656, 17.564), "vit_base_patch16_384": (86_859_496, 55.484),
    "vit_base_patch32_224": (88_224_232, 4.409), "vit_base_patch32_384": (88_297_192, 13.044),
    "vit_large_patch16_224": (304_326_632, 61.555), "vit_large_patch16_384": (304_715_752, 191.066),
    "vit_large_patch32_224": (306_535_400, 15.378), "vit_large_patch32_384": (306_632_680, 45.276),
    "vit_huge_patch14_224": (632_045_800, 167.295), "vit_huge_patch14_392": (632_721_640, 544.952),
    "vit_small_patch8_224": (21_670_272, 22.405), "vit_base_patch8_224": (86_576_872, 78.148),
    "deit_tiny_patch16_224": (5_717_416, 1.254), "deit_small_patch16_224": (22_050_664, 4.599),
    "deit_base_patch16_224": (86_567_656, 17.564), "deit_base_patch16_384": (86_859_496, 55.484),
    "deit_tiny_distilled_patch16_224": (5_910_800, 1.261), "deit_small_distilled_patch16_224": (22_436_432, 4.624),
    "deit_base_distilled_patch16_224": (87_338_192, 17.657), "deit_base_distilled_patch16_384": (87_630_032, 55.591),
    "deit3_small_patch16_224": (22_059_496, 4.599), "deit3_small_patch16_384": (22_205_416, 15.490),
    "deit3_medium_patch16_224": (38_849_512, 7.991), "deit3_base_patch16_224": (86_585_320, 17.564),
    "deit3_base_patch16_384": (86_877_160, 55.484), "deit3_large_patch16_224": (304_374_760, 61.555),
    "deit3_large_patch16_384": (304_763_880, 191.066), "deit3_huge_patch14_224": (632_126_440, 167.295),
    "vit_small_patch14_dinov2": (22_056_192, 46.697), "vit_base_patch14_dinov2": (86_579_712, 151.574),
    "vit_large_patch14_dinov2": (304_367_616, 506.804), "vit_giant_patch14_dinov2": (1_136_479_232, 1783.343),
    "vit_small_patch14_reg4_dinov2": (22_057_344, 46.883), "vit_base_patch14_reg4_dinov2": (86_582_016, 152.116),
    "vit_large_patch14_reg4_dinov2": (304_370_688, 508.551), "vit_giant_patch14_reg4_dinov2": (1_136_483_840, 1789.222),
    "vit_tiny_r_s16_p8_224": (6_337_704, 0.434), "vit_tiny_r_s16_p8_384": (6_355_944, 1.327),
    "vit_small_r26_s32_224": (36_431_912, 3.464), "vit_small_r26_s32_384": (36_468_392, 10.264),
    "vit_base_r50_s16_224": (98_659_112, 21.535), "vit_base_r50_s16_384": (98_950_952, 67.156),
    "vit_large_r50_s32_224": (328_994_856, 19.413), "vit_large_r50_s32_384": (329_092_136, 57.136),
    "swin_tiny_patch4_window7_224": (28_288_354, 4.491), "swin_small_patch4_window7_224": (49_606_258, 8.741),
    "swin_base_patch4_window7_224": (87_768_224, 15.431), "swin_base_patch4_window12_384": (87_903_584, 47.083),
    "swin_large_patch4_window7_224": (196_532_476, 34.476), "swin_large_patch4_window12_384": (196_735_516, 103.919),
    "swinv2_tiny_window8_256": (28_347_154, 5.940), "swinv2_tiny_window16_256": (28_347_154, 6.661),
    "swinv2_small_window8_256": (49_728_418, 11.546), "swinv2_small_window16_256": (49_728_418, 12.783),
    "swinv2_base_window8_256": (87_918_816, 20.325), "swinv2_base_window16_256": (87_918_816, 21.969),
    "swinv2_base_window12_192": (109_280_841, 11.878), "swinv2_base_window12to16_192to256": (87_918_816, 21.969),
    "swinv2_base_window12to24_192to384": (87_918_816, 55.148),
    "swinv2_large_window12_192": (228_772_549, 26.134), "swinv2_large_window12to16_192to256": (196_739_932, 47.740),
    "swinv2_large_window12to24_192to384": (196_739_932, 115.991),
    "convnextv2_atto": (3_708_400, 0.547), "convnextv2_femto": (5_233_240, 0.780),
    "convnextv2_pico": (9_066_280, 1.367), "convnextv2_nano": (15_623_800, 2.446),
    "convnextv2_tiny": (28_635_496, 4.456), "convnextv2_small": (50_318_440, 8.684),
    "convnextv2_base": (88_717_800, 15.355), "convnextv2_large": (197_956_840, 34.361),
    "convnextv2_huge": (660_289_640, 114.922),
    "convnext_tiny": (28_589_128, 4.456), "convnext_small": (50_223_688, 8.684), "convnext_base": (88_591_464, 15.355),
    "convnext_large": (197_767_336, 34.361), "convnext_xlarge": (350_196_968, 60.921),
}  # fmt: skip
# The same for images of 32 x 32, with multiply-accumulates in 10⁶.
SMALL_COSTS = {
    "vit_nano_cifar": (142_026, 10.9), "vit_micro_cifar": (460_906, 33.9), "vit_tiny_cifar": (4_028_170, 274.0),
    "vit_tiny_cifar_slvit": (2_697_610, 187.7), "vit_ti12_cifar": (5_362_762, 365.1),
    "vit_small_cifar": (12_470_026, 829.0),
    "swin_pico_cifar": (144_264, 5.5),
    "swin_micro_cifar": (394_118, 14.6), "swin_nano_cifar": (567_046, 20.9),
    "swin_mini_cifar": (2_159_260, 60.7), "swin_tiny_cifar": (7_048_612, 240.9),
    "convnext_yocto_cifar": (132_930, 1.9),
    "convnext_micro_cifar": (494_314, 17.2),
    "convnext_atto_cifar": (3_376_290, 44.3), "convnext_femto_cifar": (4_834_906, 63.2),
    "convnext_mid_cifar": (8_535_498, 111.0),
    "swinv2_nano_cifar": (588_422, 21.9), "swinv2_tiny_cifar": (7_104_772, 243.8),
    "convnextv2_atto_cifar": (3_389_170, 44.3),
    "hybrid_pico_cifar": (136_730, 38.1),
    "hybrid_micro_cifar": (467_242, 42.1),
    "hybrid_nano_cifar": (998_986, 115.7), "hybrid_cifar": (3_645_802, 322.6), "hybrid_wide_cifar": (6_317_322, 729.3),
    "hybrid_r50_cifar": (17_437_322, 1624.6),
}  # fmt: skip
# Parameters alone. ViTs of ImageNet-21k have the pre-logits layer; the sizes of ConvNeXt below T are timm's.
PARAMETERS = {
    "vit_tiny_patch16_224_in21k": 9_777_171,
    "vit_small_patch16_224_in21k": 30_223_059, "vit_small_patch32_224_in21k": 31_051_347,
    "vit_base_patch16_224_in21k": 103_186_515, "vit_base_patch32_224_in21k": 104_843_091,
    "vit_large_patch16_224_in21k": 326_740_307, "vit_large_patch32_224_in21k": 328_949_075,
    "vit_huge_patch14_224_in21k": 660_385_363, "vit_base_r50_s16_224_in21k": 115_277_971,
    "convnext_atto": 3_695_520, "convnext_femto": 5_217_784, "convnext_pico": 9_045_672, "convnext_nano": 15_593_560,
}  # fmt: skip
# Models with other arguments: name, arguments, parameters, 10⁹ multiply-accumulates.
VARIANTS = [
    ("vit_huge_patch14_224", {"img_size": 518}, 633_470_440, 1016.717),
    ("convnext_tiny", {"img_size": 384}, 28_589_128, 13.092),
    ("convnext_small", {"img_size": 384}, 50_223_688, 25.518),
    ("convnext_base", {"img_size": 384}, 88_591_464, 45.122),
    ("convnext_large", {"img_size": 384}, 197_767_336, 100.978),
    ("convnext_xlarge", {"img_size": 384}, 350_196_968, 179.029),
    ("swin_tiny_cifar", {"mlp_ratio": 4.0}, 10_372_132, 0.354),
    ("swin_tiny_cifar", {"mlp_ratio": 4.0, "depths": (2, 2, 6)}, 12_141_604, 0.296),
    ("swin_mini_cifar",
     {"patch_size": 1, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}, 6_899_764, 0.362),  # 361.5 of 10⁶
]  # fmt: skip
# Parameters of ViTs of ImageNet-21k: without head, with head but no pre-logits, with pre-logits and 1000 classes.
IN21K = {
    "vit_base_patch16_224_in21k": (85_798_656, 102_595_923, 87_158_248),
    "vit_base_patch32_224_in21k": (87_455_232, 104_252_499, 88_814_824),
    "vit_large_patch16_224_in21k": (303_301_632, 325_690_707, 305_376_232),
    "vit_large_patch32_224_in21k": (305_510_400, 327_899_475, 307_585_000),
    "vit_huge_patch14_224_in21k": (630_764_800, 658_745_683, 633_685_480),
}


def without_weights(name, **overrides):
    with init.meta_init():
        return models.create_model(name, **overrides)


# The counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COSTS)
def test_parameters_and_macs_equal_pytorchs_counter(name):
    model = without_weights(name)
    assert (summary.parameters(model), round(summary.macs(model) / 1e9, 3)) == COSTS[name]


@pytest.mark.parametrize("name", SMALL_COSTS)
def test_parameters_and_macs_for_small_images(name):
    model = without_weights(name)
    assert (summary.parameters(model), round(summary.macs(model) / 1e6, 1)) == SMALL_COSTS[name]


@pytest.mark.parametrize(("name", "overrides", "count", "gmacs"), VARIANTS)
def test_parameters_and_macs_of_variants(name, overrides, count, gmacs):
    model = without_weights(name, **overrides)
    assert (summary.parameters(model), round(summary.macs(model) / 1e9, 3)) == (count, gmacs)


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name):
    assert summary.parameters(without_weights(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", models.list_models("*_in22k"))
def test_parameters_with_imagenet_22k_classes(name):
    model, (count, _) = without_weights(name), COSTS[name.removesuffix("_in22k")]
    assert summary.parameters(model) == count + (21841 - 1000) * (model.num_features + 1)


@pytest.mark.parametrize("name", IN21K)
def test_parameters_of_heads(name):
    heads = {"num_classes": 0, "representation_size": None}, {"representation_size": None}, {"num_classes": 1000}
    assert tuple(summary.parameters(without_weights(name, **head)) for head in heads) == IN21K[name]


def test_every_model_is_in_a_table_of_costs():
    counted = {*COSTS, *SMALL_COSTS, *PARAMETERS}
    assert counted == {name for name in registered() if not name.startswith("roadmap_") and not name.endswith("_in22k")}


def test_macs_of_single_ops():
    """Expected, by hand: output elements times the products summed for each element."""

    class Products(nn.Module):
        def __init__(self) -> None:
            self.dense = nn.Conv2d(4, 6, 3, padding=1)
            self.grouped = nn.Conv2d(6, 6, (3, 1), stride=2, groups=3)
            self.depthwise = nn.Conv2d(6, 12, 3, padding=1, groups=6)
            self.linear = nn.Linear(12, 5)

        def forward(self, x):
            x = self.depthwise(F.relu(self.grouped(self.dense(x)))).flatten(2)  # (2, 12, 6)
            y = F.softmax(self.linear(x.transpose(1, 2)), -1)  # (2, 6, 5)
            y = x @ y  # (2, 12, 5)
            y = minigrad.einsum("bij,bkj->bik", y, y[:, :3])  # (2, 12, 3)
            return F.scaled_dot_product_attention(y, y[:, :7], x[:, :7])  # (2, 12, 6), over 7 keys

    model = Products()
    before = {name: parameter.data for name, parameter in model.named_parameters()}
    calls = summary.trace(model, (2, 4, 8, 4))
    found = [(call.module, call.op, call.output, call.macs) for call in calls if call.macs]
    assert found == [
        ("dense", "Conv2d", (2, 6, 8, 4), 2 * 6 * 8 * 4 * (4 * 9)),
        ("grouped", "Conv2d", (2, 6, 3, 2), 2 * 6 * 3 * 2 * (2 * 3)),
        ("depthwise", "Conv2d", (2, 12, 3, 2), 2 * 12 * 3 * 2 * 9),
        ("linear", "Linear", (2, 6, 5), 2 * 6 * 5 * 12),
        ("", "MatMul", (2, 12, 5), 2 * 12 * 5 * 6),
        ("", "Einsum", (2, 12, 3), 2 * 12 * 3 * 5),
        ("", "ScaledDotProductAttention", (2, 12, 6), 2 * 12 * 7 * (3 + 6)),
    ]
    assert next(call.inputs for call in calls if call.op == "Linear") == ((2, 6, 12), (5, 12), (5,))
    assert model.training and all(inner.training for inner in model.modules())
    assert all(parameter.data is before[name] for name, parameter in model.named_parameters())


def test_a_failed_trace_leaves_the_model_unchanged():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm2d(2))
    model[1].eval()
    with pytest.raises(ValueError, match="linear"):
        summary.trace(model, (1, 4))
    assert model.training and model[0].training and not model[1].training
    assert type(model[0].weight.data) is np.ndarray and type(model[1].running_var.data) is np.ndarray
    with pytest.raises(ValueError, match="create the model with img_size"):
        summary.macs(without_weights("vit_nano_cifar"), 64)


def test_counting_the_largest_model_allocates_no_weights():
    tracemalloc.start()
    model = without_weights("vit_huge_patch14_392")
    assert summary.macs(model) > 5e11
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * 2**20, f"{peak / 2**20:.0f} MiB, the weights alone would take 2400"


@pytest.mark.parametrize("name", ["vit_nano_cifar", "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224",
                                  "hybrid_cifar", "swin_tiny_cifar", "convnext_atto_cifar", "roadmap_00_resnet50",
                                  "roadmap_16_separate_downsampling_cifar"])  # fmt: skip
def test_parts_sum_to_the_model(name):
    model = without_weights(name)
    parts = summary.parts(model)
    assert sum(part.parameters for part in parts) == summary.parameters(model)
    assert sum(part.macs for part in parts) == summary.macs(model)
    assert set(model.blocks_by_name()) <= {part.name for part in parts}
    head = (model.num_features + 1) * model.num_classes, model.num_features * model.num_classes
    assert parts[-1][1:] == ((1, model.num_classes), *head)


# Attention ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in models.list_models("swin_*") if not name.endswith("_in22k")])
def test_counted_attention_equals_the_formulas_of_the_swin_paper(name):
    model = without_weights(name)
    costs = summary.attention_costs(model)
    assert len(costs) == len(model.layers)
    for stage, cost in enumerate(costs):
        assert (cost.h, cost.C) == (model.img_size[0] // model.patch_embed.patch_size >> stage, costs[0].C << stage)
        assert cost.msa == cost.msa_counted and cost.w_msa == cost.w_msa_counted
        assert (cost.msa > cost.w_msa) == (cost.h > cost.M)


def test_counted_attention_of_rectangular_windows():
    costs = summary.attention_costs(without_weights("swin_nano_cifar", window_size=(2, 4), patch_size=(2, 1)))
    assert [(cost.h, cost.w, cost.M) for cost in costs] == [(16, 32, (2, 4)), (8, 16, (2, 4)), (4, 8, (2, 4))]
    assert all(cost.w_msa == cost.w_msa_counted == 4 * cost.h * cost.w * cost.C * (cost.C + 4) for cost in costs)


def test_padding_costs_more_than_the_formula():
    first = summary.attention_costs(without_weights("swin_nano_cifar"), img_size=36)[0]
    assert (first.h, first.M) == (18, 4)
    assert first.w_msa_counted > summary.w_msa_macs(18, 18, 32, 4)  # the windows cover a map of 20 x 20
    assert first.w_msa_counted == summary.w_msa_macs(20, 20, 32, 4)


def test_attention_of_vit_includes_the_class_token():
    model = without_weights("vit_base_patch16_224")
    calls = [call for call in summary.trace(model, (1, 3, 224, 224)) if call.module.startswith("blocks.0.attn")]
    assert sum(call.macs for call in calls) == summary.msa_macs(1, 197, 768)


# The command line -----------------------------------------------------------------------------------------------------


def run(capsys, *arguments) -> str:
    main(arguments)
    return capsys.readouterr().out


def test_table_shows_costs_and_published_accuracies(capsys):
    text = run(capsys, "vit_*patch1*", "swin_*", "*nano_cifar")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120

    def cells(name: str) -> list[str]:
        return next(line.split() for line in lines if line.startswith(name + " "))

    assert cells("vit_base_patch16_384")[1:] == ["86,859,496", "17.564", "55.484", "83.97", "IN-21k", "@384",
                                                 "arXiv:2010.11929,", "table", "5"]  # fmt: skip
    assert cells("vit_huge_patch14_392")[1:] == ["632,721,640", "167.295", "544.952"]  # 14 does not divide 384
    assert cells("swin_base_patch4_window12_384")[1:4] == ["87,903,584", "47.083", "84.5"]  # windows of 12: 384 only
    assert cells("hybrid_nano_cifar")[1:] == ["998,986", "115.7"]
    assert "swin_tiny_patch4_window7_224    56 x 56    96   7      2,003.8   2,003.8          145.1    145.1" in text
    assert "Hybrid" in text and "Swin-Transformer README: github.com" in text and "roadmap" not in text


def test_one_model_is_shown_block_by_block(capsys):
    text = run(capsys, "convnext_tiny")
    assert "84.1   IN-22k @384  ConvNeXt README" in text  # not in the table of all models
    assert "stages.2.8           1 x 384 x 14 x 14   1,201,920    234.9" in text
    assert "total                                   28,589,128  4,455.5" in text
    assert "W-MSA" not in text and max(map(len, text.splitlines())) <= 120


def test_csv_has_the_rows_of_the_table(capsys):
    rows = list(csv.DictReader(io.StringIO(run(capsys, "--csv", "vit_nano_cifar", "convnext_base"))))
    assert [row["name"] for row in rows] == ["vit_nano_cifar", "convnext_base"]
    assert rows[0]["macs_224"] == rows[0]["top1"] == "" and rows[0]["img_size"] == "32"
    assert round(int(rows[0]["macs"]) / 1e6, 1) == 10.9
    assert rows[1]["macs"] == rows[1]["macs_224"] and round(int(rows[1]["macs_384"]) / 1e9, 3) == 45.122
    assert (rows[1]["top1"], rows[1]["data"], rows[1]["at"], rows[1]["source"]) == (
        "83.8", "IN-1k", "224", "ConvNeXt README",
    )  # fmt: skip


def test_unknown_names_raise(capsys):
    for name, hint in [
        ("swin_nano_cifra", "did you mean swin_nano_cifar"),
        ("swim*", "python -m models 'swin_*' lists similar names"),
        ("resnet50", "python -m models lists all"),
    ]:
        with pytest.raises(SystemExit):
            main([name])
        assert f"there is no model '{name}'; {hint}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["swin_v2_t", "swinv2_tiny_window8_256.ms_in1k"])
def test_names_of_torchvision_and_tags_are_shown(name, capsys):
    main([name, "--csv"])
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["name", "swinv2_tiny_window8_256"]


def test_families_and_published_figures_belong_to_models():
    assert {model_class(name) for name in registered()} == set(FAMILIES)
    assert set(PUBLISHED) <= set(registered())
    for name, results in PUBLISHED.items():
        own = model_arguments(name)["img_size"]
        for result in results:
            assert 60 < result.top1 < 90 and result.img_size in (own, 224, 384, 512)
            assert result.source in SOURCES or result.source.startswith("arXiv:")


def test_the_table_of_the_largest_models_takes_little_memory():
    program = (
        "from resource import RUSAGE_SELF, getrusage\n"
        "from models.__main__ import main\n"
        "before = getrusage(RUSAGE_SELF).ru_maxrss\n"
        "main(['vit_huge_*', 'vit_large_patch16_*', 'swin_large_*384', 'convnext_xlarge'])\n"
        "print(before, getrusage(RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split()[-2:])
    assert after - before < 40 * 1024, f"{(after - before) / 1024:.0f} MiB"


OWN = """\
module  class       output         parameters    MACs
0       Conv2d      1 x 8 x 8 x 8         224  13,824
1       ReLU        1 x 8 x 8 x 8           0       0
2       Sequential  1 x 10              5,130   5,120
  0     Dropout                             0       0
  1     Flatten     1 x 512                 0       0
  2     Linear      1 x 10              5,130   5,120
total   Sequential  1 x 10              5,354  18,944"""


def test_summary_of_ones_own_module():
    head = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(8 * 64, 10))
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), head)
    assert summary_of(net, (1, 3, 8, 8)) == OWN
    assert summary_of(net, (1, 3, 8, 8), depth=1).count("\n") == 4
    assert head.training and all(isinstance(x.data, np.ndarray) for x in net.parameters())


def test_summary_agrees_with_the_parts_of_a_model():
    lines = summary_of(models.create_model("vit_nano_cifar"), (1, 3, 32, 32)).splitlines()
    assert lines[-1].split() == ["total", "VisionTransformer", "1", "x", "10", "142,026", "10,880,128"]
