"""The benchmark of growing images: counted MACs, fitted slopes, placed labels, the table, and the files."""

import csv
import sys

import pytest

from tests.benchmarks import growth
from tests.benchmarks.growth import FAMILIES, Point

VIT, SWIN, CONVNEXT = FAMILIES
MACS = {(model, side): growth.count(model, side) for model in FAMILIES for side in (224, 1344)}


def synthetic_points(sides):
    """Points whose time and memory are powers of the number of pixels."""
    return [
        Point(model, side, side**2, side**2 * 1000, 3, (side**2) ** p, 0.0, 0.0, round((side**2) ** p), 0)
        for model, p in zip(FAMILIES, (1.5, 1.0, 0.9), strict=True)
        for side in sides
    ]


def test_models_have_equal_macs_at_224():
    macs = [MACS[model, 224] for model in FAMILIES]
    assert max(macs) < 1.04 * min(macs)


def test_macs_of_swin_and_convnext_are_linear_in_pixels():
    assert MACS[SWIN, 1344] == pytest.approx(36 * MACS[SWIN, 224], rel=1e-2)
    assert MACS[CONVNEXT, 1344] == pytest.approx(36 * MACS[CONVNEXT, 224], rel=1e-2)
    assert MACS[VIT, 1344] > 3.5 * 36 * MACS[VIT, 224]


def test_slope_is_the_exponent():
    assert growth.slope([1, 4, 9], [5, 5 * 4**1.7, 5 * 9**1.7]) == pytest.approx(1.7)


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ([0, 5, 10], [0, 5, 10]),
        ([4, 0, 4.5], [3.25, 0, 5.25]),
        ([1, 1, 1], [-1, 1, 3]),
        ([0, 2.5, 3], [-0.1667, 1.8333, 3.8333]),  # the second also moves the first
    ],
)
def test_labels_do_not_overlap(values, places):
    assert growth.spread_apart(values, 2) == pytest.approx(places, abs=1e-3)


def test_measurement_in_a_new_process():
    point = growth.measure("vit_nano_cifar", 32, 0.0)
    assert (point.pixels, point.runs) == (1024, growth.MIN_RUNS)
    assert 0 < point.fastest <= point.seconds <= point.slowest
    assert 0 < point.memory < point.peak
    assert point.macs == pytest.approx(10.9e6, rel=0.01)


def test_table_has_a_row_per_side_and_two_rows_of_slopes():
    lines = growth.table(synthetic_points(growth.SIDES)).splitlines()
    assert [line.split()[0] for line in lines[2:8]] == [str(side) for side in growth.SIDES]
    for line, part in zip(lines[8:], ("224-672", "896-1344"), strict=True):
        assert line.split()[:2] == ["slope", part]
        assert line.split()[2:] == ["1.00", "1.50", "1.50", "1.00", "1.00", "1.00", "1.00", "0.90", "0.90"]
    assert len(growth.table(synthetic_points(growth.QUICK_SIDES)).splitlines()) == 2 + 3 + 1


def test_plot_writes_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    growth.plot(synthetic_points(growth.SIDES), tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_only_the_csv_is_written(tmp_path, monkeypatch, capsys):
    points = {(point.model, point.side): point for point in synthetic_points(growth.QUICK_SIDES)}
    monkeypatch.setattr(growth, "measure", lambda model, side, budget: points[model, side])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    growth.main(["--quick", "--output", str(tmp_path / "new" / "folder")])
    assert "pip install matplotlib" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["growth.csv"]
    with (tmp_path / "new" / "folder" / "growth.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert tuple(rows[0]) == Point._fields
