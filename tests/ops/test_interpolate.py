"""Resizing beyond the table of cases: what every matrix of weights is, PyTorch's corner cases, errors that teach."""

import numpy as np
import pytest

import minigrad.functional as F
from minigrad import Tensor
from minigrad.ops.interpolate import MODES, Interpolate, weights
from tests.cases.interpolate import interpolate

SIZES = [(1, 1), (1, 4), (5, 1), (5, 3), (3, 7), (6, 6), (14, 16), (37, 4)]
FILTERS = [(mode, align, antialias) for mode in MODES[2:] for align in (False, True) for antialias in (False, True)]


def matrix(in_size, out_size, mode, align_corners=False, antialias=False, scale=None):
    return weights(in_size, out_size, mode=mode, align_corners=align_corners, antialias=antialias, scale=scale)


@pytest.mark.parametrize(("mode", "align_corners", "antialias"), [("nearest", False, False), *FILTERS])
def test_a_constant_image_stays_constant(mode, align_corners, antialias):
    for sizes in SIZES:
        np.testing.assert_allclose(matrix(*sizes, mode, align_corners, antialias).sum(axis=1), 1, atol=1e-14)


@pytest.mark.parametrize(("mode", "align_corners", "antialias"), [("nearest-exact", False, False), *FILTERS])
def test_the_same_size_is_the_same_image(mode, align_corners, antialias):
    np.testing.assert_allclose(matrix(6, 6, mode, align_corners, antialias), np.eye(6), atol=1e-14)


@pytest.mark.parametrize("mode", MODES[1:])  # not "nearest", which takes the pixel under its left edge
def test_a_mirrored_image_is_resized_to_the_mirrored_image(mode):
    for sizes in SIZES:
        if mode == "nearest-exact" and sizes[0] % 2 == 0:
            continue  # a centre may fall on a border between two pixels
        np.testing.assert_allclose(matrix(*sizes, mode), matrix(*sizes, mode)[::-1, ::-1], atol=1e-14)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_aligned_corners_are_kept(mode):
    for in_size, out_size in ((5, 3), (3, 7), (2, 2)):
        w = matrix(in_size, out_size, mode, align_corners=True)
        np.testing.assert_allclose(w[[0, -1]], np.eye(in_size)[[0, -1]], atol=1e-14)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_doubling_repeats_pixels(mode):
    x = np.arange(6.0).reshape(1, 1, 2, 3)
    y = F.interpolate(Tensor(x), scale_factor=2, mode=mode).numpy()
    np.testing.assert_array_equal(y, x.repeat(2, axis=2).repeat(2, axis=3))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialias_sees_all_pixels(mode):
    """Shrunk eightfold without it, an image has pixels that no output pixel depends on."""
    assert (abs(matrix(32, 4, mode)).sum(axis=0) == 0).any()
    assert (abs(matrix(32, 4, mode, antialias=True)).sum(axis=0) > 0).all()


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialias_to_a_width_of_one(mode):
    """PyTorch 2.13 returns other numbers here on the CPU, to which its own backward does not belong."""
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 5))
    y = F.interpolate(Tensor(x), size=(4, 1), mode=mode, antialias=True).numpy()
    np.testing.assert_allclose(y, interpolate(x, size=(4, 1), mode=mode, antialias=True), atol=1e-14)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_one_aligned_pixel_is_the_first(mode, antialias):
    """One pixel has no second corner to align: the step is 0."""
    w = matrix(5, 1, mode, align_corners=True, antialias=antialias)
    options = {"mode": mode, "align_corners": True, "antialias": antialias}
    np.testing.assert_allclose(w, interpolate(np.eye(5)[None, None], size=(1, 5), **options)[0, 0], atol=1e-14)
    assert w.argmax() == 0


def test_a_scale_that_keeps_an_axis():
    """As in PyTorch's forward: the scale is put aside, but not where it never was: nearest-exact, plain bicubic."""
    for mode, antialias in (("nearest", False), ("bilinear", False), ("bilinear", True), ("bicubic", True)):
        np.testing.assert_allclose(matrix(8, 8, mode, antialias=antialias, scale=1.1), np.eye(8), atol=1e-14)
    for mode in ("nearest-exact", "bicubic"):
        assert abs(matrix(8, 8, mode, scale=1.1) - np.eye(8)).max() > 0.1
    np.testing.assert_array_equal(matrix(8, 16, "nearest", scale=2.06), np.eye(8).repeat(2, axis=0))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_ties_of_nearest_fall_as_in_torch(mode):
    """Where r · in / out is a whole number, rounding decides: both do it in float32."""
    torch = pytest.importorskip("torch")
    for in_size in range(1, 40):
        x = torch.arange(in_size, dtype=torch.float32).reshape(1, 1, 1, in_size)
        for out_size in range(1, 100, 3):
            expected = torch.nn.functional.interpolate(x, size=(1, out_size), mode=mode).numpy().ravel()
            np.testing.assert_array_equal(matrix(in_size, out_size, mode).argmax(axis=1), expected)


def test_position_embeddings_of_a_vit():
    """A 14 × 14 grid to 24 × 24 and back keeps a smooth image."""
    grid = np.linspace(-1, 1, 14)
    x = np.sin(grid)[:, None] * np.cos(grid)
    options = {"mode": "bicubic", "antialias": True}
    there = F.interpolate(Tensor(x[None, None]), size=(24, 24), **options)
    back = F.interpolate(there, size=(14, 14), **options).numpy()[0, 0]
    assert abs(back - x).max() < 0.02


@pytest.mark.parametrize("size", [(16, 16), (5, 3), (3, 12)])
@pytest.mark.parametrize(("mode", "antialias"), [*((mode, False) for mode in MODES), *((m, True) for m in MODES[2:])])
def test_what_is_not_finite_stays_where_it_is_used(mode, antialias, size):
    """Forward and backward: elsewhere all is as if it was not there."""
    options = {"size": size, "mode": mode, "antialias": antialias}
    rng = np.random.default_rng(0)
    x, grad_y = rng.standard_normal((1, 2, 8, 8)), rng.standard_normal((1, 2, *size))
    R, C = (abs(matrix(8, out, mode, antialias=antialias)) > 0 for out in size)

    def run(x, grad_y):
        x = Tensor(x, requires_grad=True)
        y = F.interpolate(x, **options)
        y.backward(Tensor(grad_y))
        return y.numpy(), x.grad.numpy()

    right_y, right_x = run(x, grad_y)
    for value in (np.nan, -np.inf):
        x_odd, grad_odd = x.copy(), grad_y.copy()
        x_odd[0, 1, 0, 2] = grad_odd[0, 1, 1, 0] = value
        found_y, found_x = run(x_odd, grad_odd)
        for found, right, reached in (
            (found_y, right_y, np.outer(R[:, 0], C[:, 2])),
            (found_x, right_x, np.outer(R[1], C[0])),
        ):
            np.testing.assert_allclose(found[0, 0], right[0, 0], rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(found[0, 1][~reached], right[0, 1][~reached], rtol=1e-12, atol=1e-14)
            assert not np.isfinite(found[0, 1][reached]).any()
            if mode in MODES[:2]:
                assert (found[0, 1][reached] == value).all() or np.isnan(value)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear"])
def test_as_many_are_not_finite_as_in_torch(mode):
    """Of sizes where no bilinear weight is 0: PyTorch multiplies by that one."""
    torch = pytest.importorskip("torch")
    for value, place in ((np.nan, (3, 4)), (-np.inf, (0, 0))):
        x = np.zeros((1, 1, 8, 8), np.float32)
        x[(0, 0, *place)] = value
        for size in ((16, 16), (11, 20)):
            expected = torch.nn.functional.interpolate(torch.from_numpy(x), size, mode=mode).numpy()
            np.testing.assert_array_equal(F.interpolate(Tensor(x), size, mode=mode).numpy(), expected)


def test_only_the_matrices_are_saved():
    node = Interpolate()
    node.forward(np.ones((1, 1, 4, 5)), size=(2, 3), scales=None, mode="bilinear", align_corners=None, antialias=False)
    assert {name: value.shape for name, value in vars(node).items()} == {"rows": (2, 4), "columns": (3, 5)}


@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        ((1, 4, 4), {"size": 2}, ValueError, "4-D"),
        ((1, 1, 0, 4), {"size": 2}, ValueError, "only the batch may be empty"),
        ((1, 1, 4, 4), {"size": 0}, ValueError, "size must be at least 1"),
        ((1, 1, 4, 4), {"size": 2, "mode": "area"}, ValueError, "mode must be one of nearest, .*'area'"),
        ((1, 1, 4, 4), {"size": 2, "mode": "nearest", "align_corners": False}, ValueError, "align_corners is only for"),
        ((1, 1, 4, 4), {"size": 2, "mode": "nearest-exact", "antialias": True}, ValueError, "antialias is only for"),
    ],
)
def test_errors_teach(shape, options, error, message):
    with pytest.raises(error, match=message):
        F.interpolate(Tensor(np.zeros(shape)), **options)


def test_scales_are_positive():
    with pytest.raises(ValueError, match="scales must be above 0"):
        Interpolate().forward(
            np.ones((1, 1, 4, 4)), size=2, scales=(0.5, -1.0), mode="nearest", align_corners=None, antialias=False
        )


def test_integers_are_refused():
    with pytest.raises(TypeError, match="floating-point"):
        F.interpolate(Tensor(np.zeros((1, 1, 4, 4), np.int64)), size=2)
