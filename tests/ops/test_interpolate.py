"""Interpolation: properties of the weight matrices, PyTorch's corner cases, and error messages."""

import numpy as np
import pytest

import minigrad.functional as F
from minigrad import Tensor
from minigrad.ops.interpolate import MODES, Interpolate, weights
from tests.cases.interpolate import interpolate as naive_interpolate

SIZES = [(1, 1), (1, 4), (5, 1), (5, 3), (3, 7), (6, 6), (14, 16), (37, 4)]
FILTERS = [(mode, align, antialias) for mode in MODES[2:] for align in (False, True) for antialias in (False, True)]


def weight_matrix(in_size, out_size, mode, align_corners=False, antialias=False, scale=None):
    return weights(in_size, out_size, mode=mode, align_corners=align_corners, antialias=antialias, scale=scale)


@pytest.mark.parametrize(("mode", "align_corners", "antialias"), [("nearest", False, False), *FILTERS])
def test_weights_of_each_output_pixel_sum_to_1(mode, align_corners, antialias):
    for sizes in SIZES:
        np.testing.assert_allclose(weight_matrix(*sizes, mode, align_corners, antialias).sum(axis=1), 1, atol=1e-14)


@pytest.mark.parametrize(("mode", "align_corners", "antialias"), [("nearest-exact", False, False), *FILTERS])
def test_interpolation_to_the_same_size_is_the_identity(mode, align_corners, antialias):
    np.testing.assert_allclose(weight_matrix(6, 6, mode, align_corners, antialias), np.eye(6), atol=1e-14)


@pytest.mark.parametrize("mode", MODES[1:])  # not "nearest", which rounds down
def test_interpolation_commutes_with_mirroring(mode):
    for sizes in SIZES:
        if mode == "nearest-exact" and sizes[0] % 2 == 0:
            continue  # a tie: the centre lies on the border of two input pixels
        np.testing.assert_allclose(weight_matrix(*sizes, mode), weight_matrix(*sizes, mode)[::-1, ::-1], atol=1e-14)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_align_corners_copies_the_corner_pixels(mode):
    for in_size, out_size in ((5, 3), (3, 7), (2, 2)):
        w = weight_matrix(in_size, out_size, mode, align_corners=True)
        np.testing.assert_allclose(w[[0, -1]], np.eye(in_size)[[0, -1]], atol=1e-14)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_nearest_doubling_repeats_pixels(mode):
    x = np.arange(6.0).reshape(1, 1, 2, 3)
    y = F.interpolate(Tensor(x), scale_factor=2, mode=mode).numpy()
    np.testing.assert_array_equal(y, x.repeat(2, axis=2).repeat(2, axis=3))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialias_uses_all_input_pixels(mode):
    """Downsampling by 8 without antialias ignores some input pixels."""
    assert (abs(weight_matrix(32, 4, mode)).sum(axis=0) == 0).any()
    assert (abs(weight_matrix(32, 4, mode, antialias=True)).sum(axis=0) > 0).all()


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialias_to_width_1_equals_the_oracle(mode):
    """PyTorch 2.13 is no reference here: on the CPU, its forward and backward contradict each other."""
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 5))
    y = F.interpolate(Tensor(x), size=(4, 1), mode=mode, antialias=True).numpy()
    np.testing.assert_allclose(y, naive_interpolate(x, size=(4, 1), mode=mode, antialias=True), atol=1e-14)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_align_corners_to_one_pixel_takes_the_first(mode, antialias):
    """One output pixel has no second corner to align: the step is 0."""
    w = weight_matrix(5, 1, mode, align_corners=True, antialias=antialias)
    options = {"mode": mode, "align_corners": True, "antialias": antialias}
    np.testing.assert_allclose(w, naive_interpolate(np.eye(5)[None, None], size=(1, 5), **options)[0, 0], atol=1e-14)
    assert w.argmax() == 0


def test_a_scale_that_does_not_change_the_size_is_ignored():
    """PyTorch's forward ignores the scale too. Exceptions in both: nearest-exact, and bicubic without antialias."""
    for mode, antialias in (("nearest", False), ("bilinear", False), ("bilinear", True), ("bicubic", True)):
        np.testing.assert_allclose(weight_matrix(8, 8, mode, antialias=antialias, scale=1.1), np.eye(8), atol=1e-14)
    for mode in ("nearest-exact", "bicubic"):
        assert abs(weight_matrix(8, 8, mode, scale=1.1) - np.eye(8)).max() > 0.1
    np.testing.assert_array_equal(weight_matrix(8, 16, "nearest", scale=2.06), np.eye(8).repeat(2, axis=0))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_nearest_breaks_ties_as_pytorch(mode):
    """If a source coordinate is an integer, rounding decides: PyTorch and minigrad round in float32."""
    torch = pytest.importorskip("torch")
    for in_size in range(1, 40):
        x = torch.arange(in_size, dtype=torch.float32).reshape(1, 1, 1, in_size)
        for out_size in range(1, 100, 3):
            expected = torch.nn.functional.interpolate(x, size=(1, out_size), mode=mode).numpy().ravel()
            np.testing.assert_array_equal(weight_matrix(in_size, out_size, mode).argmax(axis=1), expected)


def test_position_embeddings_change_little_by_resizing_and_back():
    """Resizing a smooth 14 × 14 grid to 24 × 24 and back changes the grid by at most 0.02."""
    grid = np.linspace(-1, 1, 14)
    x = np.sin(grid)[:, None] * np.cos(grid)
    options = {"mode": "bicubic", "antialias": True}
    upsampled = F.interpolate(Tensor(x[None, None]), size=(24, 24), **options)
    downsampled = F.interpolate(upsampled, size=(14, 14), **options).numpy()[0, 0]
    assert abs(downsampled - x).max() < 0.02


@pytest.mark.parametrize("size", [(16, 16), (5, 3), (3, 12)])
@pytest.mark.parametrize(("mode", "antialias"), [*((mode, False) for mode in MODES), *((m, True) for m in MODES[2:])])
def test_nan_and_infinity_reach_only_dependent_pixels(mode, antialias, size):
    """Pixels that do not depend on the NaN or infinity keep their values in forward and backward."""
    options = {"size": size, "mode": mode, "antialias": antialias}
    rng = np.random.default_rng(0)
    x, grad_y = rng.standard_normal((1, 2, 8, 8)), rng.standard_normal((1, 2, *size))
    R, C = (abs(weight_matrix(8, out, mode, antialias=antialias)) > 0 for out in size)

    def forward_backward(x, grad_y):
        x = Tensor(x, requires_grad=True)
        y = F.interpolate(x, **options)
        y.backward(Tensor(grad_y))
        return y.numpy(), x.grad.numpy()

    finite_y, finite_x = forward_backward(x, grad_y)
    for value in (np.nan, -np.inf):
        x_bad, grad_bad = x.copy(), grad_y.copy()
        x_bad[0, 1, 0, 2] = grad_bad[0, 1, 1, 0] = value
        actual_y, actual_x = forward_backward(x_bad, grad_bad)
        for actual, expected, reached in (
            (actual_y, finite_y, np.outer(R[:, 0], C[:, 2])),
            (actual_x, finite_x, np.outer(R[1], C[0])),
        ):
            np.testing.assert_allclose(actual[0, 0], expected[0, 0], rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(actual[0, 1][~reached], expected[0, 1][~reached], rtol=1e-12, atol=1e-14)
            assert not np.isfinite(actual[0, 1][reached]).any()
            if mode in MODES[:2]:
                np.testing.assert_array_equal(actual[0, 1][reached], value)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear"])
def test_nan_and_infinity_spread_as_in_pytorch(mode):
    """Each weight of these pixels is nonzero: PyTorch multiplies NaN and infinity by zero weights too."""
    torch = pytest.importorskip("torch")
    for value, place in ((np.nan, (3, 4)), (-np.inf, (0, 0))):
        x = np.zeros((1, 1, 8, 8), np.float32)
        x[(0, 0, *place)] = value
        for size in ((16, 16), (11, 20)):
            expected = torch.nn.functional.interpolate(torch.from_numpy(x), size, mode=mode).numpy()
            np.testing.assert_array_equal(F.interpolate(Tensor(x), size, mode=mode).numpy(), expected)


def test_only_the_weight_matrices_are_saved():
    node = Interpolate()
    node.forward(np.ones((1, 1, 4, 5)), size=(2, 3), scales=None, mode="bilinear", align_corners=None, antialias=False)
    assert {name: value.shape for name, value in vars(node).items()} == {"rows": (2, 4), "columns": (3, 5)}


@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        ((4, 4), {"size": 2}, ValueError, "4-D"),
        ((1, 4, 4), {"size": 2, "mode": "bilinear"}, ValueError, "4-D"),
        ((1, 4, 4), {"size": 2, "mode": "linear", "antialias": True}, ValueError, "antialias is only for"),
        ((1, 1, 4, 4), {"size": 2, "mode": "area", "align_corners": False}, ValueError, "align_corners is only for"),
        ((1, 1, 0, 4), {"size": 2}, ValueError, "only the batch may be empty"),
        ((1, 1, 4, 4), {"size": 0}, ValueError, "size must be at least 1"),
        ((1, 1, 4, 4), {"size": 2, "mode": "cubic"}, ValueError, "mode must be one of nearest, .*'cubic'"),
        ((1, 1, 4, 4), {"size": 2, "mode": "nearest", "align_corners": False}, ValueError, "align_corners is only for"),
        ((1, 1, 4, 4), {"size": 2, "mode": "nearest-exact", "antialias": True}, ValueError, "antialias is only for"),
    ],
)
def test_error_messages(shape, options, error, message):
    with pytest.raises(error, match=message):
        F.interpolate(Tensor(np.zeros(shape)), **options)


def test_negative_scales_are_refused():
    with pytest.raises(ValueError, match="scales must be above 0"):
        Interpolate().forward(
            np.ones((1, 1, 4, 4)), size=2, scales=(0.5, -1.0), mode="nearest", align_corners=None, antialias=False
        )


def test_integers_are_refused():
    with pytest.raises(TypeError, match="floating-point"):
        F.interpolate(Tensor(np.zeros((1, 1, 4, 4), np.int64)), size=2)
