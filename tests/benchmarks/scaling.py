"""Predict the time and efficiency of data-parallel training from stated inputs.

    python -m tests.benchmarks.scaling            H200 cards, 8 to 512 (30 s)
    python -m tests.benchmarks.scaling --cpu      CPU nodes, one rank each
    python -m tests.benchmarks.scaling --check    against measured steps, here
    mpiexec -n 2 python -m tests.benchmarks.scaling --measure      MPI, here

Each rank computes the gradient of its own batch; an all-reduce gives all ranks
the mean. The batch of a rank does not depend on the number of ranks (weak
scaling), so efficiency = C / step. Letters: N ranks, in nodes of G cards; S
bytes of float32 gradients; B bytes/s that a rank sends, and receives at the
same time; α seconds a message; C seconds of compute in a step, of which the
backward takes W; T seconds of an all-reduce.

Not modelled: reading images, waiting for the slowest rank, and an all-reduce in
the background that slows down the backward. An efficiency is therefore an upper
bound for its inputs.
"""

import argparse
import os
import platform
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil, log2
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.terminal import ArgumentParser, escape_unencodable

LARGE = [f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")]
CIFAR = ["vit_tiny_cifar", "swin_tiny_cifar", "convnext_atto_cifar", "hybrid_cifar"]
CARDS = 8  # G
BACKWARD = 2 / 3  # W / C: the backward has two products for each of the forward
FIRST_MB, BUCKET_MB = 1.0, 25.0  # PyTorch's defaults: the first bucket is small, so that communication starts early

# An H200 in mixed precision: 80 % and 75 % of ceilings that no card has confirmed (`python -m tests.gpu --first` will)
GPU_BANDWIDTH, GPU_FLOPS, GPU_LAUNCH = 0.80 * 4.3e12, 0.75 * 700e12, 2.2e-6  # bytes/s, FLOP/s, seconds


class Link(NamedTuple):
    name: str
    B: float  # bytes/s of a rank
    α: float  # seconds
    tree: bool  # latency of a tree, else of a ring
    source: str


_NCCL = "α: NCCL, src/graph/tuning.cc, protocol Simple"
_NIC = "B: 92 % of the line (46 to 48 GB/s at 400 Gbit/s: github.com/NVIDIA/nccl-tests/issues/290)"
NVLINK = Link(
    "NVLink 4", 370e9, 3.4e-6, False,
    f"The line has 450 GB/s a direction; rings reach 370: github.com/NVIDIA/nccl-tests/issues/212. {_NCCL}",
)  # fmt: skip
PER_CARD = Link("400 Gbit/s a card", 0.92 * 50e9, 14e-6, True, f"{_NIC}. {_NCCL}")
PER_NODE = PER_CARD._replace(name="400 Gbit/s a node", B=PER_CARD.B / CARDS, source=f"Shared by {CARDS} cards.")
SLOW_NODE = PER_NODE._replace(name="100 Gbit/s a node", B=PER_NODE.B / 4)
NETWORKS = [PER_CARD, PER_NODE, SLOW_NODE]
CPU_NETWORK = PER_CARD._replace(name="100 Gbit/s a rank", B=PER_CARD.B / 4)


# The model ------------------------------------------------------------------------------------------------------------


def volume(S: float, N: int) -> float:
    """Bytes that a rank sends: V = 2 (N-1)/N S, half in the reduce-scatter and half in the all-gather."""
    return 2 * (N - 1) / N * S


def all_reduce(S: float, N: int, link: Link) -> float:
    """T = V/B + 2 (N-1) α  with a ring,  V/B + 2 ⌈log₂ N⌉ α  with a tree (recursive halving and doubling)"""
    return volume(S, N) / link.B + 2 * (ceil(log2(N)) if link.tree else N - 1) * link.α


def hierarchical(S: float, N: int, inside: Link, between: Link, G: int = CARDS) -> float:
    """Reduce-scatter among the G cards of a node, all-reduce of a card's S/G with the N/G - 1 other nodes, all-gather
    in the node. The first and the last make an all-reduce:  T = T_inside(S, G) + T_between(S/G, N/G)
    """
    return all_reduce(S, min(N, G), inside) + all_reduce(S / G, ceil(N / G), between)


def exposed(ready: Sequence[float], times: Sequence[float], W: float) -> float:
    """Seconds of communication after the backward. Bucket k is complete r_k seconds after the start of the backward.
    Its all-reduce takes T_k, after that of bucket k-1, and ends at

    e_k = max(r_k, e_{k-1}) + T_k,    exposed = e_K - W
    """
    e = 0.0
    for r, T in zip(ready, times, strict=True):
        e = max(r, e) + T
    return e - W


class Buckets(NamedTuple):
    """The gradients of a model, in the order of the backward."""

    sizes: list[float]  # bytes
    ready: list[float]  # the share of the backward after which a bucket is complete; the last: 1


def buckets_of(parts: Sequence[Any], limit: float) -> Buckets:
    """Buckets of `limit` bytes; the first has at most 1 MB. The backward goes through `parts` (`models.summary.parts`)
    from last to first and takes time in proportion to MACs; within a part, bytes become complete at a constant rate."""
    nbytes = [0, *np.cumsum([4 * part.parameters for part in reversed(parts)])]
    macs = [0, *np.cumsum([part.macs for part in reversed(parts)])]
    ends = np.append(np.arange(min(limit, FIRST_MB * 2**20), nbytes[-1], limit), nbytes[-1])
    return Buckets(np.diff(ends, prepend=0).tolist(), (np.interp(ends, nbytes, macs) / macs[-1]).tolist())


class Prediction(NamedTuple):
    reduce: float  # seconds of the all-reduces of all buckets
    plain: float  # seconds of a step whose all-reduces start after the backward
    overlapped: float  # seconds of a step whose all-reduces start when their buckets are complete


def predict(C: float, buckets: Buckets, T: Callable[[float], float]) -> Prediction:
    """step = C + ΣT_k without overlap,  C + exposed with overlap"""
    times, W = [T(S) for S in buckets.sizes], BACKWARD * C
    return Prediction(sum(times), C + sum(times), C + exposed([W * r for r in buckets.ready], times, W))


# Inputs ---------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    model: str
    batch: int  # of a rank
    C: float
    source: str  # of C
    buckets: Buckets


def parts_of(model: str) -> list[Any]:
    import models
    from minigrad.nn import init
    from models.summary import parts

    with init.meta_init():
        return parts(models.create_model(model))


def gpu_step(model: str, batch: int) -> tuple[float, str]:
    """Estimated seconds of a step on an H200: a launch takes as long as its bytes, the FLOPs of its matrix product, or
    its start, whichever is longest. Bytes and FLOPs are linear in the batch, and counted at two small batches."""
    from tests.cuda.runner import HAS_COMPILER
    from tests.gpu.launches import BATCHES, counted

    if not HAS_COMPILER:
        raise SystemExit("the launches of a step are counted with g++ on Linux; without: --models MODEL --step-ms MS")
    low, high = (np.array(counted(model, size).work, float) for size in BATCHES)
    nbytes, flops = (low + (high - low) / (BATCHES[1] - BATCHES[0]) * (batch - BATCHES[0])).T
    C = np.maximum(np.maximum(nbytes / GPU_BANDWIDTH, flops / GPU_FLOPS), GPU_LAUNCH).sum()
    return float(C), f"{nbytes.sum() / 1e9:.1f} GB, {flops.sum() / 1e12:.2f} TFLOP"


def cpu_step(model: str, batch: int, runs: int = 3) -> tuple[float, str]:
    from tests.benchmarks.scaling_mpi import seconds, training

    return seconds(training(model, batch), runs), f"measured here, median of {runs}"


def machine() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start, NumPy {np.__version__}"


# Tables ---------------------------------------------------------------------------------------------------------------


def described(link: Link) -> str:
    text = f"B {link.B / 1e9:.4g} GB/s, α {link.α * 1e6:.3g} µs, {'tree' if link.tree else 'ring'}. {link.source}"
    return textwrap.fill(f"{link.name}: {text}", 79, subsequent_indent="  ", break_on_hyphens=False)


def inputs_row(case: Case) -> str:
    model, batch, C, source, (sizes, _) = case
    return f"{model:21}{batch:6}{sum(sizes) / 1e6:8.1f}{len(sizes):9}{C * 1e3:9.2f}  {source}"


def scaling_table(cases: Sequence[Case], worlds: Sequence[int], T: Callable[[float, int], float]) -> Iterator[str]:
    """A row for each model and number of ranks. T(S, N) is the time of an all-reduce."""
    yield f"{'':26}{'all-reduce':>11}{'no overlap':>16}{'overlap':>14}"
    yield f"{'model':21}{'ranks':>5}{'ms':>11}{'step ms':>10}{'%':>6}{'step ms':>8}{'%':>6}{'images/s':>12}"
    for model, batch, C, _, buckets in cases:
        for N in worlds:
            reduce, plain, overlapped = predict(C, buckets, partial(T, N=N))
            line = f"{model:21}{N:5}{reduce * 1e3:11.2f}{plain * 1e3:10.2f}{100 * C / plain:6.1f}"
            yield f"{line}{overlapped * 1e3:8.2f}{100 * C / overlapped:6.1f}{N * batch / overlapped:12,.0f}"


def memory_table(cases: Sequence[Case], worlds: Sequence[int]) -> Iterator[str]:
    """MB that a rank sends in a step, and MB of parameters S, gradients S and Adam's moments 2 S / N:  S (2 + 2/N)

    ZeRO's reduce-scatter can overlap with the backward; its all-gather, the other half, follows the update.
    """
    head = "".join(f"{N:7}" for N in worlds)
    yield f"{'':21}{'MB sent, N =':>{len(head)}}  {'MB with Adam, N =':>{len(head)}}\n{'model':21}{head}  {head}"
    for case in cases:
        S = sum(case.buckets.sizes) / 1e6
        sent = "".join(f"{volume(S, N):7.0f}" for N in worlds)
        yield f"{case.model:21}{sent}  " + "".join(f"{S * (2 + 2 / N):7.0f}" for N in worlds)


def show(title: str, lines: Iterator[str]) -> None:
    print(f"\n{title}", *lines, sep="\n")


def main(arguments: Sequence[str] | None = None) -> None:
    from tests.benchmarks import scaling_mpi

    escape_unencodable()
    parser = ArgumentParser(
        prog="python -m tests.benchmarks.scaling", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--cpu", action="store_true", help="CPU ranks instead of cards")
    mode.add_argument("--check", action="store_true", help="measure steps of 1, 2 and 4 ranks (starts mpiexec)")
    mode.add_argument("--measure", action="store_true", help="measure the all-reduce of MPI (start it by mpiexec)")
    mode.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="instead of ViT-Ti, S, B, L and CIFAR models")
    parser.add_argument("--batch", type=int, help="of a rank (default: 128, CIFAR 512; --cpu: 64; --check: 8)")
    parser.add_argument("--ranks", type=int, nargs="+", metavar="N", help="default: 8 64 512; --cpu: 2 4 8 64")
    parser.add_argument("--step-ms", type=float, metavar="MS", help="C of --models, instead of the estimate")
    parser.add_argument("--bucket-mb", type=float, default=BUCKET_MB, metavar="MB", help="default: %(default)g")
    parser.add_argument(
        "--link",
        type=float,
        nargs=2,
        metavar=("GB/s", "µs"),
        help="B and α of the network, such as those of --measure; B of one rank or card",
    )
    options = parser.parse_args(arguments)
    if options.serve:
        return scaling_mpi.serve(options.serve[0], int(options.serve[1]))
    if options.measure:
        return scaling_mpi.measure()
    print(machine())
    if options.check:
        return scaling_mpi.check((options.models or CIFAR)[0], options.batch or 8)
    models = options.models or (CIFAR if options.cpu else [*LARGE, *CIFAR])
    worlds = options.ranks or ([2, 4, 8, 64] if options.cpu else [8, 64, 512])
    if options.step_ms is not None and (len(models) > 1 or options.step_ms <= 0):
        parser.error("--step-ms must be above 0, and needs --models with one model")
    if options.bucket_mb <= 0 or min(options.batch or 1, *(options.link or [1])) <= 0:
        parser.error("--bucket-mb, --batch and --link must be above 0")
    if min(worlds) < 1 or (not options.cpu and any(N % CARDS for N in worlds if N > CARDS)):
        parser.error(f"--ranks must be at least 1, and above {CARDS} cards a multiple of {CARDS}, got {worlds}")

    title = "CPU, one rank with one thread a node" if options.cpu else "H200, mixed precision: estimates, not measured"
    print(f"\n{title}. MB: float32 gradients.\n{'model':21}{'batch':>6}{'MB':>8}{'buckets':>9}{'C ms':>9}  source of C")
    cases = []
    for model in models:
        batch = options.batch or (64 if options.cpu else 512 if model in CIFAR else 128)
        given = options.step_ms and (options.step_ms / 1e3, "given")
        C, source = given or (cpu_step if options.cpu else gpu_step)(model, batch)
        cases.append(Case(model, batch, C, source, buckets_of(parts_of(model), options.bucket_mb * 2**20)))
        print(inputs_row(cases[-1]), flush=True)
    networks = [CPU_NETWORK] if options.cpu else NETWORKS
    if options.link:
        networks = [Link("given", options.link[0] * 1e9, options.link[1] * 1e-6, True, "By --link.")]
    if options.cpu:
        show(f"{described(networks[0])}\n", scaling_table(cases, worlds, partial(all_reduce, link=networks[0])))
        return
    if options.step_ms is None:
        print(f"C: the sum over all launches of the longest of bytes / {GPU_BANDWIDTH / 1e12:.2f} TB/s,", end=" ")
        print(f"FLOPs\n/ {GPU_FLOPS / 1e12:.0f} TFLOP/s and {GPU_LAUNCH * 1e6:g} µs.")
    print("", *(described(link) for link in (NVLINK, *networks)), sep="\n")
    if inside := [N for N in worlds if N <= CARDS]:
        show(f"One node, {NVLINK.name}", scaling_table(cases, inside, partial(all_reduce, link=NVLINK)))
    for network in networks if (between := [N for N in worlds if N > CARDS]) else []:
        T = partial(hierarchical, inside=NVLINK, between=network)
        show(f"Nodes of {CARDS} cards, {NVLINK.name}, {network.name}", scaling_table(cases, between, T))
    show("ZeRO: volume of an all-reduce; Adam's moments / N", memory_table(cases, list(dict.fromkeys([1, *worlds]))))


if __name__ == "__main__":
    main()
