"""Collective operations on ranks of mpiexec: results, errors, ends."""

import re
import time
from pathlib import Path

import pytest

from tests.parallel.mpiexec import needs_mpi, run

pytestmark = needs_mpi
COLLECTIVES = Path(__file__).parent / "collectives.py"


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_operations_equal_numpy(ranks, exhaustive):
    seed = str(time.time_ns() % 10**6)
    result = run(ranks, COLLECTIVES, seed, "10" if exhaustive else "2")
    assert result.out == ["done\n"] * ranks, f"seed {seed}"


def test_checks_of_every_operation_find_nothing_to_report():
    assert run(2, COLLECTIVES, "0", "1", MINIGRAD_CHECK_COLLECTIVES="1").out == ["done\n"] * 2


START = "import os, signal, sys, time\nimport numpy as np\nfrom minigrad.parallel import world\nw = world()\n"


@pytest.mark.parametrize("end", ["raise SystemExit(3)", "w.close(); sys.exit()"])
def test_rank_that_ends_early_is_named(end):
    code = START + f"if w.rank == 1: {end}\nw.all_reduce(np.ones(3))\nw.all_reduce(np.ones(3))"
    result = run(3, code, check=False, timeout=20)
    assert result.code
    assert "needs all ranks, but rank 1 has ended" in "".join(result.err)


def test_rank_that_ends_early_is_found_by_wait():
    code = START + "if w.rank == 1: sys.exit()\nw.start_all_reduce(np.ones(10**6)).wait()"
    result = run(2, code, check=False, timeout=20)
    assert result.code
    assert "start_all_reduce needs all ranks, but rank 1 has ended" in result.err[0]


def test_ranks_may_end_at_different_times():
    result = run(3, START + "w.all_reduce(np.ones(10**6))\ntime.sleep(0.3 * w.rank)\nprint(w)", timeout=20)
    assert result.out == [f"World(rank={r}, size=3, local_rank={r})\n" for r in range(3)]


def test_abort_ends_all_ranks_with_the_code():
    code = START + 'if w.rank == 1: w.abort("the disk is full", 7)\nw.all_reduce(np.ones(3))\ntime.sleep(60)'
    result = run(3, code, check=False, timeout=20)
    assert result.code == 7
    assert result.err[1].startswith("rank 1 of 3: the disk is full\n")


def test_uncaught_exception_ends_all_ranks():
    code = START + "if w.rank == 1: {}['key']\nw.barrier()\nw.all_reduce(np.ones(3))"
    result = run(2, code, check=False, timeout=20)
    assert result.code == 1
    assert "Traceback" in result.err[1] and "rank 1 of 2: KeyError: 'key'\n" in result.err[1]


def test_killed_rank_ends_all_ranks():
    code = START + "if w.rank == 1: os.kill(os.getpid(), signal.SIGKILL)\nw.all_reduce(np.ones(3))"
    assert run(2, code, check=False, timeout=20).code


@pytest.mark.parametrize("call", ["w.all_reduce(x)", "w.start_all_reduce(x).wait()", "w.barrier()"])
def test_signal_handlers_run_while_a_rank_waits(call):
    code = START + (
        "x = np.ones(3)\n"
        "signal.signal(signal.SIGALRM, lambda *_: print('handler', flush=True))\n"
        "if w.rank == 0: signal.setitimer(signal.ITIMER_REAL, 0.1)\n"
        "if w.rank == 1: time.sleep(0.5)\n"
        f"{call}\n"
        "print('done', flush=True)"
    )
    assert run(2, code, timeout=20).out == ["handler\ndone\n", "done\n"]


@pytest.mark.parametrize(
    ("call", "check", "message"),
    [
        (
            "w.broadcast(np.ones(3 + w.rank))",
            "0",
            r"broadcast\(float64 \(3,\), 0\), rank 1 called broadcast\(float64 \(4,",
        ),
        ("w.all_gather(np.ones(3, [int, float][w.rank]))", "0", r"all_gather\(int64 \(3,\)\), rank 1 called .*float64"),
        ("w.all_reduce(np.ones(3 + w.rank))", "1", r"rank 0 called all_reduce\(float64 \(3,\), 'sum'\), rank 1 called"),
        ("w.barrier() if w.rank else w.start_all_reduce(np.ones(1))", "1", r"rank 1 called barrier\(\)"),
    ],
)
def test_different_calls_are_explained(call, check, message):
    code = START + f"try:\n    {call}\nexcept ValueError as error:\n    print(error)"
    found = run(2, code, timeout=20, MINIGRAD_CHECK_COLLECTIVES=check).out
    assert found[0] == found[1]
    assert re.search(message, found[0])


def test_without_mpi_threads_sums_are_made_in_wait():
    code = "import mpi4py\nmpi4py.rc.thread_level = 'funneled'\n" + START
    code += "x = np.full(10**5, 1.0 + w.rank)\nwork = w.start_all_reduce(x)\nw.barrier()\nwork.wait()\n"
    code += "print(x.min(), x.max(), w._host.threaded)"
    assert run(2, code, timeout=20).out == ["3.0 3.0 False\n"] * 2


def test_environment_that_mpi_contradicts_is_explained():
    code = "import os\nos.environ.update(OMPI_COMM_WORLD_RANK=os.environ['PMI_RANK'], OMPI_COMM_WORLD_SIZE='8')\n"
    result = run(2, code + START, check=False, timeout=20)
    assert "Open MPI started rank 0 of 8, but MPI says rank 0 of 2" in result.err[0]
