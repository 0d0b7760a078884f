"""Predictions of data-parallel scaling: limits, a ring that counts its bytes, examples computed by hand, the tables."""

from collections import namedtuple
from functools import partial
from itertools import pairwise
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks import scaling, scaling_mpi
from tests.benchmarks.scaling import Buckets, Link, all_reduce, exposed, hierarchical, predict
from tests.cuda.runner import needs_compiler

FREE = Link("free", inf, 0.0, False, "")
RING, TREE = Link("ring", 10e9, 1e-5, False, ""), Link("tree", 1e9, 1e-4, True, "")
Part = namedtuple("Part", "parameters macs")
positive = st.floats(1e-6, 1e3)


@st.composite
def steps(draw):
    """C, buckets, and a link."""
    sizes = draw(st.lists(st.floats(1.0, 1e9), min_size=1, max_size=8))
    ready = sorted(draw(st.lists(st.floats(0.0, 1.0), min_size=len(sizes) - 1, max_size=len(sizes) - 1)))
    link = Link("", draw(st.floats(1e6, 1e12)), draw(st.floats(0.0, 1e-3)), draw(st.booleans()), "")
    return draw(positive), Buckets(sizes, [*ready, 1.0]), link


def ring(arrays):
    """The sums of the arrays by a ring all-reduce of N ranks, and the bytes that each rank sends."""
    N, sent = len(arrays), [0] * len(arrays)
    chunks = [np.split(x.copy(), N) for x in arrays]
    for step in range(2 * (N - 1)):
        messages = [chunks[rank][(rank - step) % N].copy() for rank in range(N)]
        for rank, message in enumerate(messages):
            target = chunks[(rank + 1) % N][(rank - step) % N]
            target[...] = target + message if step < N - 1 else message
            sent[rank] += message.nbytes
    return [np.concatenate(chunk) for chunk in chunks], sent


@pytest.mark.parametrize("N", [1, 2, 3, 8])
def test_volume_is_that_of_a_ring(N):
    arrays = [np.random.default_rng(rank).integers(0, 9, 48).astype(np.float32) for rank in range(N)]
    sums, sent = ring(arrays)
    assert all(np.array_equal(x, np.sum(arrays, axis=0)) for x in sums)
    assert sent == [scaling.volume(arrays[0].nbytes, N)] * N


@given(steps())
def test_one_rank_has_efficiency_1(step):
    C, buckets, link = step
    for T in (partial(all_reduce, N=1, link=link), partial(hierarchical, N=1, inside=link, between=link)):
        assert predict(C, buckets, T) == (0.0, C, C)


@given(steps(), st.sampled_from([2, 8, 64, 512]))
def test_infinite_bandwidth_has_efficiency_1(step, N):
    C, buckets, _ = step
    assert predict(C, buckets, partial(hierarchical, N=N, inside=FREE, between=FREE)) == pytest.approx((0.0, C, C))


@given(steps(), st.integers(1, 512))
def test_overlap_is_bounded(step, N):
    C, buckets, link = step
    T = partial(all_reduce, N=N, link=link)
    reduce, plain, overlapped = predict(C, buckets, T)
    assert plain == C + reduce
    last = T(buckets.sizes[-1])
    minimum = max(
        C + last, C * (1 - scaling.BACKWARD) + reduce
    )  # the last bucket is exposed; the link sends one by one
    assert minimum * (1 - 1e-9) <= overlapped <= plain * (1 + 1e-9)


@given(steps(), st.sampled_from([8, 64, 512]))
def test_more_ranks_are_not_faster(step, N):
    C, buckets, link = step
    few, many = (predict(C, buckets, partial(hierarchical, N=n, inside=link, between=link)) for n in (N, 8 * N))
    assert many.plain >= few.plain and many.overlapped >= few.overlapped * (1 - 1e-9)


def test_all_reduces_computed_by_hand():
    assert all_reduce(100e6, 4, RING) == pytest.approx(0.015 + 6e-5)  # 150 MB at 10 GB/s, 6 messages
    assert all_reduce(100e6, 4, TREE) == pytest.approx(0.15 + 4e-4)  # 4 messages in sequence
    assert all_reduce(100e6, 5, TREE) == pytest.approx(0.16 + 6e-4)  # 3 levels
    inside = 0.0175 + 14e-5  # 175 MB at 10 GB/s, 14 messages
    assert hierarchical(100e6, 8, RING, TREE) == pytest.approx(inside)
    assert hierarchical(100e6, 32, RING, TREE) == pytest.approx(inside + 0.01875 + 4e-4)  # 12.5 MB among 4 nodes


def test_exposed_computed_by_hand():
    # ends 3; 4 + 3 = 7, after waiting for r = 4; 7 + 1 = 8, after waiting for the link; the backward ends at 6
    assert exposed([1, 4, 6], [2, 3, 1], 6) == 2
    assert exposed([1, 4, 6], [2, 1, 1], 6) == 1  # only the last
    assert exposed([1, 4, 6], [9, 1, 1], 6) == 6  # the link is busy from 1 to 12


def test_buckets_follow_the_backward():
    parts = [Part(10, 60), Part(0, 10), Part(20, 30)]  # the backward starts with the last: 80 bytes in 0.3
    sizes, ready = scaling.buckets_of(parts, 50)
    assert sizes == [50, 50, 20]
    assert ready == pytest.approx([0.3 * 50 / 80, 0.4 + 0.6 * 20 / 40, 1])
    assert scaling.buckets_of(parts, 120) == ([120], [1.0])


@pytest.mark.parametrize("model", ["vit_small_patch16_224", "convnext_atto_cifar"])
def test_buckets_hold_all_gradients_of_a_model(model):
    parts = scaling.parts_of(model)
    sizes, ready = scaling.buckets_of(parts, 2e6)
    assert sum(sizes) == 4 * sum(part.parameters for part in parts)
    assert (sizes[0], max(sizes)) == (2**20, 2e6)
    assert all(a <= b for a, b in pairwise(ready)) and ready[-1] == 1


@needs_compiler
def test_gpu_step_from_counted_launches():
    """vit_tiny_cifar at batch 128: bytes as in launches.json; FLOPs 6 for each MAC of a product, without the products
    of attention, which are kernels here, and of the tokens that the head does not read in the last of 9 blocks."""
    from tests.gpu.launches import recorded

    C, source = scaling.gpu_step("vit_tiny_cifar", 128)
    GB, TFLOP = float(source.split()[0]), float(source.split()[2])
    assert pytest.approx(recorded()["vit_tiny_cifar"]["GB by batch"]["128"], abs=0.06) == GB
    all_products = 6 * 128 * sum(part.macs for part in scaling.parts_of("vit_tiny_cifar")) / 1e12
    assert 0.83 * all_products < TFLOP < 0.95 * all_products
    longest = max(GB * 1e9 / scaling.GPU_BANDWIDTH, TFLOP * 1e12 / scaling.GPU_FLOPS)
    assert longest * 0.95 < C < GB * 1e9 / scaling.GPU_BANDWIDTH + TFLOP * 1e12 / scaling.GPU_FLOPS + 242 * 2.2e-6


def test_fit_returns_latency_and_bandwidth():
    times = {size: all_reduce(size, 4, TREE) for size in scaling_mpi.SIZES}
    times[2**26] *= 2  # too large for the caches
    fast, slow = (scaling_mpi.fitted(times, 4, S) for S in (16.1e6, 60e6))
    assert (fast.B, fast.α) == pytest.approx((TREE.B, TREE.α), rel=0.02)
    assert (slow.B, slow.α) == pytest.approx((TREE.B / 2, TREE.α), rel=0.02)


@pytest.mark.parametrize("flags", [[], ["--cpu"]])
def test_tables(flags, capsys):
    scaling.main(
        [*flags, "--models", "vit_base_patch16_224", "--step-ms", "32", "--batch", "100", "--ranks", "1", "8", "64"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split()[1:] for line in lines if line.startswith("vit_base")]
    assert rows[0] == ["100", "346.3", "15", "32.00", "given"]
    assert rows[1] == ["1", "0.00", "32.00", "100.0", "32.00", "100.0", "3,125"]
    link, messages = (scaling.CPU_NETWORK, 6) if flags else (scaling.NVLINK, 14)
    T = 1e3 * (1.75 * 346.3e6 / link.B + 15 * messages * link.α)  # 15 buckets
    assert [float(cell) for cell in rows[2][1:4]] == pytest.approx([T, 32 + T, 100 * 32 / (32 + T)], abs=0.06)
    overlapped, efficiency, images = (float(cell.replace(",", "")) for cell in rows[2][4:])
    last = 1e3 * (1.75 * 4.47e6 / link.B + messages * link.α)  # the bucket that is complete with the backward
    assert 32 + last - 0.01 <= overlapped < 32 + T - 0.01
    assert (efficiency, images) == pytest.approx((100 * 32 / overlapped, 8 * 100 / overlapped * 1e3), rel=1e-3)
    if not flags:
        assert len(rows) == 1 + 2 + 3 + 1  # inputs, one node, a row for each network, memory
        assert rows[-1] == ["0", "606", "682", "1385", "779", "703"]


@pytest.mark.parametrize("flags", [[], ["--cpu"]])
def test_link_replaces_the_network(flags, capsys):
    scaling.main([*flags, "--models", "vit_nano_cifar", "--step-ms", "5", "--ranks", "16", "--link", "0.1", "7"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("vit_nano_cifar")]
    S = 4 * sum(part.parameters for part in scaling.parts_of("vit_nano_cifar"))
    link = Link("", 0.1e9, 7e-6, True, "")
    T = all_reduce(S, 16, link) if flags else hierarchical(S, 16, scaling.NVLINK, link)
    assert float(rows[1][2]) == pytest.approx(1e3 * T, abs=0.01)
    assert len(rows) == (2 if flags else 3)


def test_help_has_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        scaling.main(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_wrong_numbers_are_refused(capsys):
    for arguments, words in (
        (["--ranks", "12"], "a multiple of 8"),
        (["--ranks", "0"], "at least 1"),
        (["--step-ms", "3"], "with one model"),
        (["--step-ms", "0", "--models", "vit_nano_cifar"], "above 0"),
        (["--bucket-mb", "0"], "above 0"),
        (["--link", "0", "1"], "above 0"),
    ):
        with pytest.raises(SystemExit):
            scaling.main(arguments)
        assert words in capsys.readouterr().err


def test_step_averages_the_gradients_of_all_ranks():
    seen = []
    step = scaling_mpi.training("vit_nano_cifar", 2, 0, lambda flat: (seen.append(flat.copy()), flat.fill(0)))
    assert not step().any()
    assert np.abs(seen[0]).max() > 0
    step()
    np.testing.assert_allclose(seen[1], seen[0], rtol=0, atol=1e-4)  # not added to those of the first step


def test_check_runs_two_ranks(capfd):
    pytest.importorskip("mpi4py")
    try:
        scaling_mpi.mpiexec()
    except SystemExit as missing:
        pytest.skip(str(missing))
    scaling_mpi.check("vit_nano_cifar", 2, ranks=(1, 2))
    lines = capfd.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [[float(cell.rstrip("%")) for cell in line.split()] for line in lines[-2:]]
    assert [row[0] for row in rows] == [1, 2]
    for _, _, _, C, T, predicted, measured, error, *_ in rows:
        assert predicted == pytest.approx(C + T, abs=0.11)
        assert error == pytest.approx(100 * (predicted / measured - 1), abs=5)
    assert rows[0][4] == 0 < rows[1][4]
