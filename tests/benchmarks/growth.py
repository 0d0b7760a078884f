"""What an image costs ViT, Swin and ConvNeXt as it grows:  python -m tests.benchmarks.growth  (picture: matplotlib)

Three models of equal cost at 224 x 224, 4.5 to 4.6 GMACs each, classify one image of 224·k a side. Swin's maps and
windows fit these sides without padding. Seconds and memory are measured; multiply-adds are counted (`models.summary`).

A straight line of slope p in the picture means cost ∝ pixelsᵖ. In ViT a layer costs 12 D² multiply-adds a token and
2 L D more for its attention to all L tokens, so p rises from 1 towards 2: at L = 6 D attention overtakes the rest, in
S/16 (D = 384) with images of 768 x 768, in the middle of the sizes here. Smaller patches would show it on smaller
images, but then the three would not begin equal. Swin's L is that of a window and ConvNeXt has no attention: p = 1.

Each point is a process of its own, so that its peak memory is its own too: what a forward takes beyond the weights and
all that was there before it. One thread computes, as each thread of `Shards` does, and the clock is CPU time, so that
other work on the machine disturbs little; the median of at least three runs counts. On one core all of it takes about
four minutes, --quick half a minute.
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

from models.terminal import escape_unencodable

FAMILIES = {  # in the picture: name, colour (Okabe and Ito's, which the colour-blind can tell apart), marker
    "vit_small_patch16_224": ("ViT-S/16", "#D55E00", "o"),
    "swin_tiny_patch4_window7_224": ("Swin-T", "#0072B2", "s"),
    "convnext_tiny": ("ConvNeXt-T", "#009E73", "^"),
}
SIDES = [224 * k for k in (1, 2, 3, 4, 5, 6)]
QUICK_SIDES = SIDES[:3]
SECONDS, QUICK_SECONDS = 3.0, 0.5  # runs are repeated for so long, but
FEWEST_RUNS, MOST_RUNS = 3, 15
END = 3  # slopes are fitted to so many sizes at an end


class Point(NamedTuple):
    """A line of growth.csv."""

    model: str
    side: int
    pixels: int
    macs: int
    runs: int
    seconds: float  # median
    fastest: float
    slowest: float
    memory: int  # bytes that the forward took at its peak, beyond what was there before
    peak: int  # bytes, all together


# Measuring ------------------------------------------------------------------------------------------------------------


def serve(model: str, side: int, budget: float) -> None:
    """One point, in this process: prints the seconds of each run, memory before, and peak memory."""
    import numpy as np

    import models
    from minigrad import Tensor, no_grad, tune_cpu
    from minigrad.nn import init

    tune_cpu(os.cpu_count() or 1)  # leaves BLAS one thread
    rng = np.random.default_rng(0)
    with init.skip_init():
        network = models.create_model(model, img_size=side)
    network.eval()
    for parameter in network.parameters():  # in place, as what an initialiser takes would hide what the forward takes
        if parameter.data.ndim > 1:
            rng.standard_normal(out=parameter.data, dtype=np.float32)
            parameter.data *= 0.02
        else:
            parameter.data[:] = 1
    image = Tensor(rng.standard_normal((1, network.in_chans, side, side), np.float32))
    before = peak_memory()
    seconds: list[float] = []
    while len(seconds) < FEWEST_RUNS or (sum(seconds) < budget and len(seconds) < MOST_RUNS):
        start = time.process_time()
        with no_grad():
            logits = network(image)
        seconds.append(time.process_time() - start)
        if not np.isfinite(logits.numpy()).all():
            raise SystemExit(f"{model} at {side}: the logits are not finite")
    print(json.dumps([seconds, before, peak_memory()]))


def peak_memory() -> int:
    """Bytes. On Linux not from getrusage, which begins with the peak of the process that has started this one."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(model: str, side: int, budget: float) -> Point:
    """One point, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.growth", "--serve", model, str(side), str(budget)]
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")
    result = subprocess.run(command, env={**os.environ, **one}, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise SystemExit(f"{model} at {side} x {side} has failed")
    seconds, before, peak = json.loads(result.stdout)
    middle = statistics.median(seconds)
    times = len(seconds), middle, min(seconds), max(seconds)
    return Point(model, side, side**2, count(model, side), *times, peak - before, peak)


def count(model: str, side: int) -> int:
    """Multiply-adds, without computing anything."""
    import models
    from minigrad.nn import init
    from models.summary.cost import macs

    with init.meta_init():
        return macs(models.create_model(model, img_size=side))


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """p of the power law y = c xᵖ that fits best: a straight line through the logarithms."""
    return statistics.linear_regression([log(v) for v in x], [log(v) for v in y]).slope


# Showing --------------------------------------------------------------------------------------------------------------


def by_family(points: Sequence[Point]) -> dict[str, list[Point]]:
    return {model: found for model in FAMILIES if (found := [point for point in points if point.model == model])}


def slope_of(points: Sequence[Point], field: str) -> float:
    return slope([point.pixels for point in points], [getattr(point, field) for point in points])


def table(points: Sequence[Point]) -> str:
    """A line for each side, then the slopes at both ends."""
    families = by_family(points)
    groups = "".join(f"{FAMILIES[model][0]:>28}" for model in families)
    lines = [f"{'':14}{groups}", f"{'side':14}" + f"{'GMACs':>12}{'s':>8}{'MB':>8}" * len(families)]
    for row in zip(*families.values(), strict=True):
        cells = (f"{p.macs / 1e9:12.2f}{p.seconds:8.3f}{p.memory / 1e6:8.0f}" for p in row)
        lines.append(f"{row[0].side:<14}" + "".join(cells))
    sides = [point.side for point in next(iter(families.values()))]
    for part in dict.fromkeys([tuple(sides[:END]), tuple(sides[-END:])]):
        ends = [[p for p in found if p.side in part] for found in families.values()]
        cells = (f"{slope_of(e, 'macs'):12.2f}{slope_of(e, 'seconds'):8.2f}{slope_of(e, 'memory'):8.2f}" for e in ends)
        lines.append(f"slope {part[0]}-{part[-1]:<{7 - len(str(part[0]))}}" + "".join(cells))
    return "\n".join(lines)


def write(points: Sequence[Point], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Point._fields)
        writer.writerows(points)


def draw(points: Sequence[Point], path: Path) -> None:
    """Time and memory over the number of pixels."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(11, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
    families = by_family(points)
    pixels = [point.pixels for point in next(iter(families.values()))]
    rate = statistics.median(point.macs / point.seconds for point in points)
    for axes, field in ((left, "seconds"), (right, "memory")):
        axes.set(xscale="log", yscale="log", xlabel="pixels")
        for model, found in families.items():
            _, colour, marker = FAMILIES[model]
            if axes is left:
                axes.plot(pixels, [p.macs / rate for p in found], "--", color=colour, linewidth=1)
            values = [getattr(p, field) for p in found]
            axes.plot(pixels, values, marker=marker, color=colour, linewidth=2, markersize=6.5, markeredgecolor="white")
        low, high = (log(limit) for limit in axes.get_ylim())
        ends = apart([log(getattr(found[-1], field)) for found in families.values()], 0.115 * (high - low))
        for (model, found), end in zip(families.items(), ends, strict=True):
            name, colour, _ = FAMILIES[model]
            text, place = f"{name}\nslope {slope_of(found[-END:], field):.2f}", (pixels[-1], exp(end))
            axes.annotate(text, place, (9, 0), textcoords="offset points", va="center", color=colour, linespacing=1.3)
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
    note = f"dashed: multiply-adds,\nat {rate / 1e9:.0f} billion a second"
    left.text(0.97, 0.04, note, transform=left.transAxes, ha="right", color="0.35", fontsize=9, linespacing=1.3)
    ratios = (f"{FAMILIES[model][0]} {found[-1].seconds / found[0].seconds:.0f}" for model, found in families.items())
    title = f"{pixels[-1] / pixels[0]:.0f} times the pixels take how many times as long? {', '.join(ratios)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
    under = f"Inference in float32, one image, one thread. Slope p over the {END} largest sizes: cost grows as pixelsᵖ."
    figure.supxlabel(under, x=0.01, ha="left", fontsize=9, color="0.35")
    figure.savefig(path, dpi=150)


def apart(values: Sequence[float], gap: float) -> list[float]:
    """The values, moved as little as makes neighbours `gap` apart, in their order."""
    places: dict[int, float] = {}
    order = sorted(range(len(values)), key=lambda i: values[i])
    groups: list[list[int]] = []  # neighbours that touch, around their common middle
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
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the three smallest sizes")
    parser.add_argument("--output", type=Path, default=Path("runs/growth"), metavar="FOLDER", help="for the results")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        model, side, budget = options.serve
        return serve(model, int(side), float(budget))
    options.output.mkdir(parents=True, exist_ok=True)
    ready = has_matplotlib()
    if not ready:
        print("matplotlib is not installed, so there will be no growth.png: pip install -e '.[train]'\n")
    print(f"{platform.processor() or platform.machine()}, one thread; float32, batch of one image\n")
    points = []
    for side in QUICK_SIDES if options.quick else SIDES:
        for model in FAMILIES:
            progress(f"{FAMILIES[model][0]} at {side} x {side} ...")
            points.append(measure(model, side, QUICK_SECONDS if options.quick else SECONDS))
    progress("")
    print(table(points))
    write(points, options.output / "growth.csv")
    if ready:
        draw(points, options.output / "growth.png")
    print(f"\nin {options.output}: growth.csv" + (" and growth.png" if ready else ""))


def progress(text: str) -> None:
    """In place of the last, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r{text:30}\r", end="", file=sys.stderr, flush=True)


def has_matplotlib() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main()
