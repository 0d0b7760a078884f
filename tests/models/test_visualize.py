"""`python -m models.visualize`: the arrays behind the pictures against their definitions, and the files."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.ops.window_attention import shift_mask, windows_of
from models.compare import formula
from models.visualize import attention, draw, gradcam, kernels, windows
from models.visualize.__main__ import main
from tests.models.checkpoints import CLASSES, FAMILIES, write, write_image
from tests.models.small import small

ROOT = Path(__file__).parents[2]

# The arrays -----------------------------------------------------------------------------------------------------------


def sample(name, *shape):
    return formula.stream(name, *shape)


def attention_of(name, *shape):
    """Attention matrices: rows sum to 1."""
    values = sample(name, *shape) + 1
    return values / values.sum(-1, keepdims=True)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 6), st.integers(1, 4))
def test_rollout_matches_its_definition(B, heads, L, blocks):
    """Element by element: R[i, k] <- ½ R[i, k] + ½ Σ_j A[i, j] R[j, k], with A averaged over the heads."""
    maps = [attention_of(f"A{block}", B, heads, L, L) for block in range(blocks)]
    flows = attention.rollout(maps)
    assert len(flows) == blocks
    for b in range(B):
        R = [[float(i == k) for k in range(L)] for i in range(L)]
        for A, flow in zip(maps, flows, strict=True):
            R = [
                [
                    0.5 * R[i][k]
                    + 0.5 * sum(sum(A[b, h, i, j] for h in range(heads)) / heads * R[j][k] for j in range(L))
                    for k in range(L)
                ]
                for i in range(L)
            ]
            np.testing.assert_allclose(flow[b], R, rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(flow.sum(-1), 1, rtol=1e-12)


def test_rollout_keeps_dtype_and_inputs():
    A = attention_of("A", 2, 3, 5, 5).astype(np.float32)
    before = A.copy()
    assert {flow.dtype for flow in attention.rollout([A, A])} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(A, before)


def test_pooled_attention_of_class_token_and_mean():
    A = attention_of("A", 2, 3, 5, 5)
    np.testing.assert_array_equal(attention.pooled_attention(A), A[:, :, 0, 1:])
    np.testing.assert_allclose(
        attention.pooled_attention(A, "avg"), sum(A[:, :, i, 1:] for i in range(1, 5)) / 4, rtol=1e-13
    )
    assert attention.pooled_attention(A[:, 0]).shape == (2, 4)
    np.testing.assert_array_equal(attention.pooled_attention(A, "token", 3), A[:, :, 0, 3:])
    np.testing.assert_allclose(
        attention.pooled_attention(A, "avg", 3), (A[:, :, 3, 3:] + A[:, :, 4, 3:]) / 2, rtol=1e-13
    )


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_position_similarity_is_the_cosine(h, w, D):
    embedding = sample("E", h * w, D)
    similarity = attention.position_similarity(embedding, (h, w))
    for y, x, v, u in np.ndindex(h, w, h, w):
        a, b = embedding[y * w + x], embedding[v * w + u]
        assert similarity[y, x, v, u] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-12)


def test_zero_embedding_has_zero_similarity():
    similarity = attention.position_similarity(np.array([[0.0, 0.0], [1.0, 2.0]]), (1, 2))
    np.testing.assert_allclose(similarity.reshape(2, 2), [[0, 0], [0, 1]])


sizes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(2, 5), st.booleans(), st.booleans())


@given(sizes)
def test_regions_match_the_attention_mask(sampled_sizes):
    rows, columns, M, down, right = sampled_sizes
    size = rows * M, columns * M
    shift = (M // 2 if down and rows > 1 else 0, M // 2 if right and columns > 1 else 0)
    region = windows_of(np.roll(windows.regions(size, shift), (-shift[0], -shift[1]), (0, 1)), M)
    apart = region[:, :, None] != region[:, None, :]
    np.testing.assert_array_equal(shift_mask(*size, M, shift)[:, 0], np.where(apart, -100, 0))


def test_regions_of_a_small_map():
    np.testing.assert_array_equal(windows.regions((4, 3), (2, 1)), [[3, 2, 2], [3, 2, 2], [1, 0, 0], [1, 0, 0]])


@pytest.mark.parametrize("family", ["swin", "swinv2"])
@pytest.mark.parametrize("M", [2, 3, 4])
def test_bias_maps_are_indexed_by_the_key_offset(M, family):
    attn = formula.fill(small(family, window_size=M)).layers[1].blocks[0].attn
    bias = attn.bias(M).numpy()  # (heads, N, N): of query i and key j
    maps = windows.bias_maps(attn.bias_table(M).detach().numpy())
    assert maps.shape == (4, 2 * M - 1, 2 * M - 1)
    for i, j in np.ndindex(M * M, M * M):
        down, right = j // M - i // M, j % M - i % M
        np.testing.assert_array_equal(maps[:, M - 1 + down, M - 1 + right], bias[:, i, j])


@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_attention_stays_within_the_window(family):
    model = formula.fill(small(family, img_size=(36, 44)))
    x = Tensor(sample("x", 1, 3, 36, 44))
    for index, attn in enumerate(block.attn for block in model.blocks_by_name().values()):
        maps = model.attention_maps(x, [index])[0].numpy()[0]
        H, W = [(9, 11), (9, 11), (5, 6), (5, 6)][index]
        size, shift = attn.layout(H, W)
        for token in (0, 3, H * W // 2, H * W - 1):
            attended = np.flatnonzero(maps[:, token].max(0) > 0)
            window = np.flatnonzero(windows.window_of(divmod(token, W), size, shift, attn.window_size)[:H, :W])
            assert set(attended) <= set(window) and token in attended
            if not any(shift):
                assert set(attended) == set(window)


def test_principal_filters_are_eigenvectors():
    """The filters are eigenvectors of the covariance, in descending order of the eigenvalues."""
    weight = sample("W", 60, 2, 3, 3) * np.arange(1, 4)
    found, shares = kernels.principal_filters(weight, 5)
    assert found.shape == (5, 2, 3, 3) and shares.shape == (5,)
    values, vectors = np.linalg.eigh(np.cov(weight.reshape(60, -1).T))
    np.testing.assert_allclose(shares, values[::-1][:5] / values.sum(), rtol=1e-10)
    for direction, expected in zip(found.reshape(5, -1), vectors.T[::-1], strict=False):
        assert direction[abs(direction).argmax()] > 0
        np.testing.assert_allclose(direction, expected * np.sign(expected @ direction), atol=1e-8)
    assert len(kernels.principal_filters(weight, 99)[0]) == 18
    equal, shares = kernels.principal_filters(np.ones((3, 1, 2, 2)), 2)
    assert np.isfinite(equal).all() and (shares == 0).all()


# Grad-CAM -------------------------------------------------------------------------------------------------------------

LAST = {
    "convnext": ["stages.0.0", "stages.2.0"],
    "swin": ["layers.0.blocks.1", "layers.1.blocks.1"],
    "vit": ["blocks.0"],
    "dinov2": ["blocks.0"],
}


@pytest.mark.parametrize("family", LAST)
def test_grad_cam_against_finite_differences(family):
    """α_k = ∂logit/∂c / (H · W), where c is a constant added to channel k of the block's output."""
    model, x = formula.fill(small(family)).eval(), sample("x", 2, 3, 32, 32)
    classes, eps = [2, 5], 1e-5
    found = gradcam.grad_cam(model, Tensor(x), classes, LAST[family])
    for name, maps in zip(LAST[family], found, strict=True):
        block = model.blocks_by_name()[name]
        outputs = []

        def logits(channel, step, block=block, outputs=outputs):
            def hook(module, inputs, output):
                outputs.append(model.feature_map(output).numpy())
                raised = output.numpy().copy()
                patches = raised[:, model.num_prefix_tokens :] if raised.ndim == 3 else raised  # without prefix tokens
                last = family == "swin" or raised.ndim == 3
                patches[(..., channel) if last else (slice(None), channel)] += step
                return Tensor(raised)

            remove = block.register_forward_hook(hook)
            with minigrad.no_grad():
                result = model(Tensor(x)).numpy()
            remove()
            return result[[0, 1], classes]

        logits(0, 0.0)
        A = outputs[0]
        area = A.shape[2] * A.shape[3]
        alpha = np.stack([(logits(k, eps) - logits(k, -eps)) / (2 * eps * area) for k in range(A.shape[1])], 1)
        expected = np.maximum((alpha[:, :, None, None] * A).sum(1), 0)
        assert maps.shape == A.shape[:1] + A.shape[2:]
        np.testing.assert_allclose(maps, expected, rtol=1e-5, atol=1e-6 * abs(A).max() * abs(alpha).max())
        assert maps.max() > 0


def test_grad_cam_restores_gradients_hooks_and_grad_mode():
    model, x = formula.fill(small("convnext")).eval(), Tensor(sample("x", 2, 3, 32, 32))
    model(x).sum().backward()
    before = {name: parameter.grad.numpy().copy() for name, parameter in model.named_parameters()}
    with minigrad.no_grad():
        first = gradcam.grad_cam(model, x, [0, 1], ["stages.2.0"])
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.grad.numpy(), before[name])
    assert x.grad is None
    assert all(not module.__dict__.get("_forward_hooks") for module in model.modules())
    model.requires_grad_(False)
    np.testing.assert_array_equal(gradcam.grad_cam(model, x, [0, 1], ["stages.2.0"])[0], first[0])


@pytest.mark.parametrize("family", LAST)
def test_grad_cam_agrees_across_devices(family, device):
    x, results = sample("x", 2, 3, 32, 32), []
    for each in ("cpu", device):
        model = formula.fill(small(family)).eval().to(device=each)
        results.append(gradcam.grad_cam(model, Tensor(x, device=each), [2, 5], LAST[family]))
    for expected, found in zip(*results, strict=True):
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_grad_cam_explains_invalid_blocks_and_classes():
    model, x = small("convnext"), Tensor(sample("x", 2, 3, 32, 32).astype(np.float32))
    with pytest.raises(ValueError, match=r"no block 'stages\.3\.0'; blocks are stages\.0\.0, "):
        gradcam.grad_cam(model, x, [0, 1], ["stages.3.0"])
    with pytest.raises(ValueError, match="a class for each of 2 images, got 1"):
        gradcam.grad_cam(model, x, [0], ["stages.2.0"])
    for classes in ([0, 7], [-1, 0]):
        with pytest.raises(ValueError, match=r"classes must be from 0 to 6, got \["):
            gradcam.grad_cam(model, x, classes, ["stages.2.0"])
    with pytest.raises(ValueError, match=r"needs a model that pools, with logits \(B, K\), got \(2, 17, 7\)"):
        gradcam.grad_cam(small("vit", global_pool=""), x, [0, 1], ["blocks.0"])


def test_grad_cam_uses_the_last_block_of_each_size():
    model = small("swin")
    found = gradcam.last_of_each_size(model, [(8, 8), (8, 8), (4, 4), (4, 4)])
    assert found == [("layers.0.blocks.1", (8, 8)), ("layers.1.blocks.1", (4, 4))]


# Drawing --------------------------------------------------------------------------------------------------------------


def test_mosaic_is_a_grid_with_gaps():
    sheet = draw.mosaic(np.arange(1.0, 13).reshape(3, 2, 2), 2)
    gap = np.nan
    np.testing.assert_array_equal(
        sheet,
        [[1, 2, gap, 5, 6], [3, 4, gap, 7, 8], [gap] * 5, [9, 10, gap, gap, gap], [11, 12, gap, gap, gap]],
    )


def test_long_names_are_wrapped_and_lose_their_middle():
    assert draw.short("horse") == "horse" and draw.short("") == ""
    assert draw.short("a name of several words", 14) == "a name of\nseveral words"
    assert draw.short("DSC_20240102_holiday_0001", 8) == "DSC_2024\n01…_0001"
    assert draw.short("a-rather-long-name.png", 12, lines=1) == "a-rather…png"


@pytest.mark.parametrize(
    ("heads", "columns"), [((3, 6, 12, 24), 6), ((2, 4, 8), 4), ((2, 2, 4, 8), 4), ((1,), 1), ((32,), 8)]
)
def test_few_panels_are_empty(heads, columns):
    assert windows.heads_in_a_row(heads) == columns


def test_window_attention_has_the_scale_of_its_values():
    """Nearly even attention is not all of one colour; what the mask excludes has none."""
    pytest.importorskip("matplotlib")
    inside = np.zeros((4, 4), bool)
    inside[:2, :2] = True
    heads = np.where(inside, [[0.26, 0.24, 0, 0]] * 4, np.nan)[None]
    heads[0, 1, 1] = np.nan
    figure = windows.query_picture(draw.Picture("x$1$", np.zeros((3, 8, 8), np.uint8)), [("a", heads, inside, (0, 0))])
    shown = figure.axes[1].images[1]
    assert (shown.norm.vmin, shown.norm.vmax) == (24, 26)
    assert figure.axes[0].get_title() == "a\n24.0 to 26.0 %"
    assert np.count_nonzero(shown.get_alpha()) == 3
    figure.canvas.draw()


def test_all_panels_share_one_scale():
    pytest.importorskip("matplotlib")
    pictures = [draw.Picture(f"{i}", np.full((3, 8, 8), 100, np.uint8)) for i in range(2)]
    heats = [[np.full((2, 2), 1.0), np.full((4, 4), 3.0)], [np.full((2, 2), 9.0), np.full((4, 4), 2.0)]]
    figure = draw.heat_sheet("title", "a note", "label", pictures, ["a", "b"], heats)
    shown = [axes.images[1] for axes in figure.axes if len(axes.images) == 2]
    assert [float(image.get_array().max()) for image in shown] == [1, 3, 9, 2]
    assert {(image.norm.vmin, image.norm.vmax) for image in shown} == {(0, 9)}
    bar = figure.axes[-1]
    assert bar.get_ylabel() == "label" and bar.get_ylim() == (0, 9)
    assert figure.get_suptitle() == "title" and figure.get_supxlabel() == "a note"


# The command line -----------------------------------------------------------------------------------------------------

WITHOUT = {
    "vit": {"filters.png", "positions.png"},
    "vit_avg": {"filters.png", "positions.png"},
    "distilled": {"filters.png", "positions.png"},
    "deit3": {"filters.png", "positions.png"},
    "dinov2": {"filters.png", "positions.png"},
    "hybrid": {"filters.png", "positions.png"},
    "swin": {"filters.png", "windows.png", "bias.png"},
    "swinv2": {"filters.png", "windows.png", "bias.png"},
    "convnext": {"filters.png", "kernels.png"},
    "convnextv2": {"filters.png", "kernels.png"},
    "roadmap": {"filters.png"},
}
MORE = {
    "vit": {"attention.png", "rollout.png"},
    "vit_avg": {"attention.png", "rollout.png"},
    "distilled": {"attention.png", "rollout.png"},
    "deit3": {"attention.png", "rollout.png"},
    "dinov2": {"attention.png", "rollout.png"},
    "hybrid": {"attention.png", "rollout.png", "grad-cam.png"},
    "swin": {"window-attention.png", "grad-cam.png"},
    "swinv2": {"window-attention.png", "grad-cam.png"},
    "convnext": {"grad-cam.png"},
    "convnextv2": {"grad-cam.png"},
    "roadmap": {"grad-cam.png"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_writes_its_files(family, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    image_module = pytest.importorskip("PIL.Image")
    write(tmp_path / "best.npz", family)
    names = ["a $name$ that is rather long.png"]
    write_image(tmp_path / names[0], (40, 60))
    for given_images, expected in (([], WITHOUT[family]), (names, WITHOUT[family] | MORE[family] | {"prediction.png"})):
        folder = tmp_path / "new" / f"{len(given_images)}"
        arguments = [tmp_path / "best.npz", *(tmp_path / name for name in given_images), "--output", folder]
        assert main([str(argument) for argument in arguments]) == 0
        out, err = capsys.readouterr()
        assert {file.name for file in folder.iterdir()} == expected and err == ""
        assert set(re.findall(r"[\w-]+\.png(?=  )", out)) == expected
        assert ("give images for further pictures" in out) == (not given_images)
        for file in folder.iterdir():
            with image_module.open(file) as picture:
                assert picture.format == "PNG" and 300 < picture.width < 2500 and 150 < picture.height < 2500
                colours = picture.convert("L").getextrema()
                assert colours[1] - colours[0] > 100  # the picture is not blank


def test_window_attention_of_each_image(tmp_path):
    pytest.importorskip("matplotlib")
    write(tmp_path / "best.npz", "swin")
    for name in "xy":
        write_image(tmp_path / f"{name}.png")
    images = [str(tmp_path / f"{name}.png") for name in "xy"]
    assert main([str(tmp_path / "best.npz"), *images, "--output", str(tmp_path / "out")]) == 0
    found = {file.name for file in (tmp_path / "out").glob("window-*")}
    assert found == {"window-attention-1.png", "window-attention-2.png"}


@pytest.mark.parametrize("family", ["hybrid", "swin"])
def test_files_on_every_device(family, tmp_path, device):
    pytest.importorskip("matplotlib")
    write(tmp_path / "best.npz", family)
    write_image(tmp_path / "x.png")
    files = [str(tmp_path / "best.npz"), str(tmp_path / "x.png")]
    assert main([*files, "--device", device, "--output", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").iterdir())) == len(WITHOUT[family] | MORE[family]) + 1


def test_pictures_show_the_computed_values(tmp_path, monkeypatch):
    """The figures show the classes, their probabilities as bars, and the class of Grad-CAM."""
    pytest.importorskip("matplotlib")
    from models.visualize import __main__ as program

    write(tmp_path / "best.npz", "convnext")
    for seed, name in enumerate("xy"):
        write_image(tmp_path / f"{name}.png", seed=seed)
    figures = {}
    draw_all = program.draw

    def draw_and_save(*arguments):
        for name, text, figure in draw_all(*arguments):
            figures[name] = figure
            yield name, text, figure

    monkeypatch.setattr(program, "draw", draw_and_save)
    images = [str(tmp_path / f"{name}.png") for name in "xy"]
    assert main([str(tmp_path / "best.npz"), *images, "--output", str(tmp_path / "out")]) == 0
    image, bars = figures["prediction.png"].axes[:2]
    labels = [label.get_text() for label in bars.get_yticklabels()]
    widths = [bar.get_width() for bar in bars.patches]
    assert len(labels) == 5 and set(labels) <= set(CLASSES) and widths == sorted(widths, reverse=True)
    assert image.get_title() == "x" and image.images[0].get_array().shape == (32, 32, 3)
    cam = [axes for axes in figures["grad-cam.png"].axes if axes.images]
    assert cam[0].get_title() == f"x:\n{labels[0]}?"
    assert [axes.get_title() for axes in cam[1:3]] == ["16 x 16 map", "8 x 8 map"]
    assert cam[3].get_title().startswith("y:\n") and len(cam) == 6


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("swin", {"window_size": [2, 4], "patch_size": [2, 1], "img_size": [32, 24]}),
        ("vit", {"patch_size": [8, 4], "img_size": [32, 24]}),
    ],
)
def test_pictures_of_non_square_patches_and_windows(family, overrides, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(FAMILIES, "oblong", FAMILIES[family] | overrides | {"num_classes": len(CLASSES)})
    write(tmp_path / "best.npz", "oblong")
    write_image(tmp_path / "x.png")
    assert main([str(tmp_path / "best.npz"), str(tmp_path / "x.png"), "--output", str(tmp_path / "out")]) == 0
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"swin": {"windows.png", "bias.png", "window-attention.png"}, "vit": {"attention.png"}}[family] <= files


def test_single_window_has_no_shifted_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = FAMILIES["swin"] | {"window_size": 16, "num_classes": len(CLASSES)}
    FAMILIES["wide"] = arguments
    try:
        write(tmp_path / "best.npz", "wide")
    finally:
        del FAMILIES["wide"]
    write_image(tmp_path / "x.png")
    assert main([str(tmp_path / "best.npz"), str(tmp_path / "x.png"), "--output", str(tmp_path / "out")]) == 0
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert "windows.png" not in files and {"bias.png", "window-attention.png"} <= files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.npz"], "there is no file no.npz"),
        (["vit.npz", "no.png"], "there is no file or folder no.png"),
        (["vit.npz", "vit.npz"], "vit.npz is not an image"),
        (["vit.npz", *["x.png"] * 9], "at most 8 images fit in a picture, got 9"),
        (["vit.npz", "--device", "tpu"], 'device must be "cpu"'),
        (["vit.npz", "--output", "x.png/below"], "x.png/below: Not a directory"),
        (["vit.npz", "--output", "x.png"], "x.png: File exists"),
    ],
)
def test_invalid_input_prints_one_line_and_exits_with_2(arguments, message, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "vit.npz", "vit")
    write_image(tmp_path / "x.png")
    assert main([*arguments, *([] if "--output" in arguments else ["--output", "out"])]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and re.search(f"^python -m models.visualize: .*{message}", err), err
    assert not Path("out").exists()


def test_missing_matplotlib_is_explained(tmp_path, monkeypatch, capsys):
    write(tmp_path / "vit.npz", "vit")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([str(tmp_path / "vit.npz"), "--output", str(tmp_path / "out")]) == 2
    assert "drawing needs matplotlib: pip install matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_as_a_program(tmp_path):
    pytest.importorskip("matplotlib")
    write(tmp_path / "vit.npz", "vit")
    command = [sys.executable, "-W", "error", "-m", "models.visualize", "vit.npz", "--output", "out"]
    result = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == "" and (tmp_path / "out" / "positions.png").exists()
    code = "import sys, models.visualize.__main__ as m; m.parser().format_help(); sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
