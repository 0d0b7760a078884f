"""Measure how the cost of ViT, Swin and ConvNeXt grows with the size of the image.

    python -m tests.benchmarks.growth      (with matplotlib, also a picture)

Three models of equal cost at 224 x 224, 4.5 to 4.6 GMACs each, classify one image of 224·k pixels a side, sizes that
Swin's feature maps and windows fit without padding. Time and memory are measured; `models.summary` counts
multiply-accumulates (MACs).

A line of slope p in the picture, with logarithmic axes, means cost ∝ pixelsᵖ. In ViT a layer costs 12 D² MACs a token,
and attention to all L tokens 2 L D more, so p rises from 1 towards 2. Above L = 6 D, attention costs more than the
rest: for S/16 (D = 384) with images above 768 x 768, in the middle of the sizes here. Smaller patches would show the
growth on smaller images, but then the three models would not start equal. In Swin, L is the size of a window, and
ConvNeXt has no attention: p = 1.

Each measurement runs in its own process, so that the peak memory minus the memory before the forward is the memory of
the forward alone. The clock is CPU time of one thread, which other processes hardly change; the median of at least
three runs counts. All sizes take about four minutes on one core, --quick half a minute.
"""

import argparse
import csv
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from typing import NamedTuple

from models.terminal import ArgumentParser, escape_unencodable

FAMILIES = {  # in the picture: name, colour (Okabe and Ito's, which the colour-blind can tell apart), marker
    "vit_small_patch16_224": ("ViT-S/16", "#D55E00", "o"),
    "swin_tiny_patch4_window7_224": ("Swin-T", "#0072B2", "s"),
    "convnext_tiny": ("ConvNeXt-T", "#009E73", "^"),
}
SIDES = [224 * k for k in (1, 2, 3, 4, 5, 6)]
QUICK_SIDES = SIDES[:3]
BUDGET, QUICK_BUDGET = 3.0, 0.5  # seconds: a measurement repeats the forward for this time
MIN_RUNS, MAX_RUNS = 3, 15
SLOPE_POINTS = 3  # slopes are fitted to the 3 smallest and the 3 largest sizes


class Point(NamedTuple):
    """A row of growth.csv."""

    model: str
    side: int
    pixels: int
    macs: int
    runs: int
    seconds: float  # median
    fastest: float
    slowest: float
    memory: int  # bytes: the peak of the forward minus the memory before
    peak: int  # bytes: the peak of the process


# Measuring ------------------------------------------------------------------------------------------------------------


def serve(model: str, side: int, budget: float) -> None:
    """Measure one point in this process. Print the seconds of each run, the memory before, and the peak memory."""
    import numpy as np

    import models
    from minigrad import Tensor, no_grad, tune_cpu
    from minigrad.nn import init

    tune_cpu(os.cpu_count() or 1)  # with all cores as threads of minigrad, BLAS gets one thread
    rng = np.random.default_rng(0)
    with init.skip_init():
        network = models.create_model(model, img_size=side)
    network.eval()
    for parameter in network.parameters():  # in place: temporary arrays of an initialiser would raise the peak
        if parameter.data.ndim > 1:
            rng.standard_normal(out=parameter.data, dtype=np.float32)
            parameter.data *= 0.02
        else:
            parameter.data[:] = 1
    image = Tensor(rng.standard_normal((1, network.in_chans, side, side), np.float32))
    before = peak_memory()
    seconds: list[float] = []
    while len(seconds) < MIN_RUNS or (sum(seconds) < budget and len(seconds) < MAX_RUNS):
        start = time.process_time()
        with no_grad():
            logits = network(image)
        seconds.append(time.process_time() - start)
        if not np.isfinite(logits.numpy()).all():
            raise SystemExit(f"{model} at {side}: the logits are not finite")
    print(json.dumps([seconds, before, peak_memory()]))


def peak_memory() -> int:
    """Peak memory in bytes. On Linux not by getrusage, which includes the peak of the parent process."""
    status = Path("/proc/self/status")
    if status.exists() and (match := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(match[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(model: str, side: int, budget: float) -> Point:
    """Measure one point in a new process."""
    command = [sys.executable, "-m", "tests.benchmarks.growth", "--serve", model, str(side), str(budget)]
    one_thread = dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
    )
    result = subprocess.run(command, env={**os.environ, **one_thread}, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise SystemExit(f"{model} at {side} x {side} has failed")
    seconds, before, peak = json.loads(result.stdout)
    middle = statistics.median(seconds)
    times = len(seconds), middle, min(seconds), max(seconds)
    return Point(model, side, side**2, count(model, side), *times, peak - before, peak)


def count(model: str, side: int) -> int:
    """The multiply-accumulates of a forward, counted without computing it."""
    import models
    from minigrad.nn import init
    from models.summary.cost import macs

    with init.meta_init():
        return macs(models.create_model(model, img_size=side))


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent p of the power law y = c xᵖ, by linear regression of the logarithms."""
    return statistics.linear_regression([log(v) for v in x], [log(v) for v in y]).slope


# Showing --------------------------------------------------------------------------------------------------------------


def by_family(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of each measured model, in the order of FAMILIES."""
    curves = {model: [point for point in points if point.model == model] for model in FAMILIES}
    return {model: curve for model, curve in curves.items() if curve}


def slope_of(points: Sequence[Point], field: str) -> float:
    return slope([point.pixels for point in points], [getattr(point, field) for point in points])


def table(points: Sequence[Point]) -> str:
    """A row for each side, then the slopes over the smallest and over the largest sides."""
    families = by_family(points)
    groups = "".join(f"{FAMILIES[model][0]:>22}" for model in families)
    lines = [f"{'':14}{groups}", f"{'side':14}" + f" {'GMACs':>7} {'s':>6} {'MB':>6}" * len(families)]
    for row in zip(*families.values(), strict=True):
        cells = (f" {p.macs / 1e9:7.2f} {p.seconds:6.2f} {p.memory / 1e6:6.0f}" for p in row)
        lines.append(f"{row[0].side:<14}" + "".join(cells))
    sides = [point.side for point in next(iter(families.values()))]
    for part in dict.fromkeys([tuple(sides[:SLOPE_POINTS]), tuple(sides[-SLOPE_POINTS:])]):
        ends = [[p for p in curve if p.side in part] for curve in families.values()]
        cells = (
            f" {slope_of(e, 'macs'):7.2f} {slope_of(e, 'seconds'):6.2f} {slope_of(e, 'memory'):6.2f}" for e in ends
        )
        lines.append(f"slope {part[0]}-{part[-1]:<{7 - len(str(part[0]))}}" + "".join(cells))
    return "\n".join(lines)


def write(points: Sequence[Point], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Point._fields)
        writer.writerows(points)


def plot(points: Sequence[Point], path: Path) -> None:
    """Plot time and memory over the number of pixels."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(11, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
    families = by_family(points)
    pixels = [point.pixels for point in next(iter(families.values()))]
    macs_per_second = statistics.median(point.macs / point.seconds for point in points)
    for axes, field in ((left, "seconds"), (right, "memory")):
        axes.set(xscale="log", yscale="log", xlabel="pixels")
        for model, curve in families.items():
            _, colour, marker = FAMILIES[model]
            if axes is left:
                axes.plot(pixels, [p.macs / macs_per_second for p in curve], "--", color=colour, linewidth=1)
            values = [getattr(p, field) for p in curve]
            axes.plot(pixels, values, marker=marker, color=colour, linewidth=2, markersize=6.5, markeredgecolor="white")
        low, high = (log(limit) for limit in axes.get_ylim())
        ends = spread_apart([log(getattr(curve[-1], field)) for curve in families.values()], 0.115 * (high - low))
        for (model, curve), end in zip(families.items(), ends, strict=True):
            name, colour, _ = FAMILIES[model]
            label = f"{name}\nslope {slope_of(curve[-SLOPE_POINTS:], field):.2f}"
            axes.annotate(
                label,
                (pixels[-1], exp(end)),
                (9, 0),
                textcoords="offset points",
                va="center",
                color=colour,
                linespacing=1.3,
            )
        axes.xaxis.set_major_locator(FixedLocator(pixels))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x**0.5:.0f}²"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color("0.7")
        axes.tick_params(length=0, labelcolor="0.35", labelsize=8.5)
        axes.xaxis.label.set_color("0.35")
    left.set_title("CPU time of one image", loc="left", fontsize=11)
    right.set_title("Peak memory beyond the weights", loc="left", fontsize=11)
    left.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} s"))
    right.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y / 1e6:g} MB" if y < 1e9 else f"{y / 1e9:g} GB"))
    note = f"dashed: MACs, at\n{macs_per_second / 1e9:.0f} billion per second"
    left.text(0.97, 0.04, note, transform=left.transAxes, ha="right", color="0.35", fontsize=9, linespacing=1.3)
    ratios = (f"{FAMILIES[model][0]} {curve[-1].seconds / curve[0].seconds:.0f}x" for model, curve in families.items())
    title = f"Time for {pixels[-1] / pixels[0]:.0f} times the pixels: {', '.join(ratios)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
    caption = "Inference in float32, one image, one thread. "
    caption += f"Slope p over the {SLOPE_POINTS} largest sizes: cost grows as pixelsᵖ."
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=9, color="0.35")
    figure.savefig(path, dpi=150)


def spread_apart(values: Sequence[float], gap: float) -> list[float]:
    """The values with minimum changes so that neighbours differ by at least `gap`. The order stays."""
    places: dict[int, float] = {}
    order = sorted(range(len(values)), key=lambda i: values[i])
    groups: list[list[int]] = []  # groups of neighbours at distance `gap`, centred on the mean of their values
    for i in order:
        groups.append([i])
        while True:
            for group in groups[-2:]:
                middle = statistics.mean(values[j] for j in group)
                places.update({j: middle + gap * (n - (len(group) - 1) / 2) for n, j in enumerate(group)})
            if len(groups) < 2 or places[groups[-1][0]] - places[groups[-2][-1]] >= gap:
                break
            groups[-2:] = [groups[-2] + groups[-1]]
    return [places[i] for i in range(len(values))]


def main(arguments: Sequence[str] | None = None) -> None:
    escape_unencodable()
    parser = ArgumentParser(prog="python -m tests.benchmarks.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the three smallest sizes, with fewer runs")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/growth"),
        metavar="FOLDER",
        help="where to write growth.csv and growth.png (default: runs/growth)",
    )
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        model, side, budget = options.serve
        return serve(model, int(side), float(budget))
    options.output.mkdir(parents=True, exist_ok=True)
    can_plot = has_matplotlib()
    if not can_plot:
        print("No growth.png without matplotlib: pip install matplotlib\n")
    print(f"{platform.processor() or platform.machine()}, one thread, float32")
    print("Forward of one image: multiply-accumulates (GMACs), CPU time (s), peak memory")
    print("minus memory before (MB). Slope p: the cost grows as pixels to the power p.\n")
    points = []
    for side in QUICK_SIDES if options.quick else SIDES:
        for model in FAMILIES:
            progress(f"{FAMILIES[model][0]} at {side} x {side} ...")
            points.append(measure(model, side, QUICK_BUDGET if options.quick else BUDGET))
    progress("")
    print(table(points))
    write(points, options.output / "growth.csv")
    if can_plot:
        plot(points, options.output / "growth.png")
    print(f"\nWritten to {options.output}: growth.csv" + (" and growth.png" if can_plot else ""))


def progress(label: str) -> None:
    """Replace the last progress line, if the output is a terminal."""
    if sys.stderr.isatty():
        print(f"\r{label:30}\r", end="", file=sys.stderr, flush=True)


def has_matplotlib() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main()
