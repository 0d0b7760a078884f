"""Rank and size from the environment; a World of one process; checks of arguments."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad.parallel import World, processes
from minigrad.parallel.launcher import Place, place

OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MPICH = {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
SRUN = {
    "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4",
}  # fmt: skip
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "17"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Place("none", 0, 1, 0)),
        (OPEN_MPI, Place("Open MPI", 5, 8, 1)),
        (MPICH, Place("MPICH", 2, 4, 0)),
        ({"PMI_RANK": "2", "PMI_SIZE": "4"}, Place("MPICH", 2, 4, None)),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, Place("MPICH", 0, 1, None)),
        ({"PMIX_RANK": "2"}, Place("PMIx", 2, None, None)),
        (SRUN, Place("SLURM", 3, 4, 1)),
        ({**SRUN, "PMIX_RANK": "3"}, Place("PMIx", 3, 4, 1)),
        ({**SRUN, "PMI_RANK": "3", "PMI_SIZE": "4"}, Place("MPICH", 3, 4, 1)),
        (TORCHRUN, Place("torchrun", 1, 2, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Place("torchrun", 1, 2, None)),
        # The more specific launcher, in the environment of another one
        ({**TORCHRUN, **SRUN, **MPICH}, Place("MPICH", 2, 4, 0)),
        ({**TORCHRUN, **SRUN, **OPEN_MPI, "PMIX_RANK": "5"}, Place("Open MPI", 5, 8, 1)),
        # SLURM without srun: a batch script, and the shell of salloc, are one process
        (BATCH_SCRIPT, Place("none", 0, 1, 0)),
        ({**BATCH_SCRIPT, "SLURM_STEP_ID": "4294967291"}, Place("none", 0, 1, 0)),
        ({**BATCH_SCRIPT, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}, Place("none", 0, 1, 0)),
        ({**SRUN, "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, Place("none", 0, 1, 0)),
    ],
)
def test_environment_of_each_launcher(environ, expected):
    assert place(environ) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({**TORCHRUN, "RANK": "2"}, "ranks count from 0 to the number of ranks minus 1, got RANK=2, WORLD_SIZE=2"),
        ({**MPICH, "PMI_RANK": "-1"}, "PMI_RANK must be an integer of at least 0, got '-1'"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "many"}, "OMPI_COMM_WORLD_SIZE must be an integer .* got 'many'"),
        ({**TORCHRUN, "WORLD_SIZE": "0"}, "WORLD_SIZE, the number of ranks, must be at least 1"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "got RANK=1, WORLD_SIZE=2, LOCAL_RANK=2"),
        ({**TORCHRUN, "LOCAL_RANK": "²"}, "LOCAL_RANK must be an integer"),
        ({"RANK": "0"}, "torchrun sets RANK and WORLD_SIZE, but WORLD_SIZE is missing: start all ranks with one"),
        ({"WORLD_SIZE": "4"}, "but RANK is missing"),
        ({**SRUN, "SLURM_STEP_ID": "x"}, "SLURM_STEP_ID must be an integer"),
    ],
)
def test_contradictions_in_the_environment_are_explained(environ, message):
    with pytest.raises(ValueError, match=message):
        place(environ)


VALUES = st.one_of(
    st.integers(-2, 5).map(str), st.text(max_size=3), st.sampled_from(["", " 1 ", "1.0", "0x1", "٣", "1_0"])
)
NAMES = sorted({*OPEN_MPI, *MPICH, *SRUN, *TORCHRUN, "PMIX_RANK"})


@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_any_environment_gives_a_rank_or_a_value_error(environ):
    try:
        found = place(environ)
    except ValueError as error:
        assert any(name in str(error) for name in NAMES)
        return
    assert found.rank >= 0
    if found.size is not None:
        assert found.rank < found.size
        assert (found.local_rank or 0) < found.size


def test_one_process_needs_no_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)
    world = processes._make(place({**MPICH, "PMI_RANK": "0", "PMI_SIZE": "1"}))
    assert (world.rank, world.size, world.local_rank) == (0, 1, 0)
    x = np.arange(3.0)
    for op in ("sum", "mean", "max", "min"):
        world.all_reduce(x, op=op)
    world.start_all_reduce(x).wait()
    world.broadcast(x)
    assert world.all_gather(x) == [x]
    np.testing.assert_array_equal(world.reduce_scatter(x), [0, 1, 2])
    out = np.zeros(3)
    world.all_gather_into(x, out)
    np.testing.assert_array_equal(out, [0, 1, 2])
    world.barrier()
    assert world.all_gather_objects({"a": [1, None]}) == [{"a": [1, None]}]
    assert world.broadcast_object("text") == "text"
    world.close()


def test_abort_of_one_process_exits_with_the_code(capsys):
    with pytest.raises(SystemExit) as error:
        World().abort("no data", 3)
    assert error.value.code == 3
    assert capsys.readouterr().err == "rank 0 of 1: no data\n"


def test_world_is_made_once():
    assert processes.world() is minigrad.parallel.world()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda w: w.all_reduce(np.ones(2), op="prod"),
            ValueError,
            "op must be one of sum, mean, max, min, got 'prod'",
        ),
        (
            lambda w: w.all_reduce(np.arange(2), op="mean"),
            TypeError,
            'op="mean" needs floating-point arrays, got int64',
        ),
        (lambda w: w.all_reduce(1.0), TypeError, "all_reduce: needs NumPy or CuPy arrays, got float"),
        (lambda w: w.all_reduce(np.float32(1)), TypeError, "needs NumPy or CuPy arrays, got float32"),
        (lambda w: w.broadcast(minigrad.ones(2)), TypeError, r"got Tensor: pass x\.data"),
        (lambda w: w.all_reduce(np.ones(2, complex)), TypeError, "needs floating-point numbers, integers or bool"),
        (lambda w: w.all_reduce(np.broadcast_to(1.0, 2)), ValueError, "an array is read-only: pass a copy"),
        (lambda w: w.broadcast(np.ones(2), root=1), ValueError, "root must be a rank from 0 to 0, got 1"),
        (lambda w: w.reduce_scatter(np.ones((2, 2))), ValueError, "needs an array with one axis"),
        (lambda w: w.all_gather_into(np.ones(2), np.ones(3)), ValueError, "all_gather_into: for x"),
        (lambda w: w.all_gather_objects({1, 2}), TypeError, "JSON"),
    ],
)
def test_wrong_arguments_are_explained(call, error, message):
    with pytest.raises(error, match=message):
        call(World())


def test_several_ranks_without_mpi_name_the_library():
    with pytest.raises(RuntimeError, match="rank 1 of 2: arrays on the CPU are sent by MPI: pip install mpi4py mpich"):
        World(1, 2).all_reduce(np.ones(2))


def test_pmix_without_mpi4py_names_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)
    with pytest.raises(RuntimeError, match=r"PMIx started rank 2; .* pip install mpi4py"):
        processes._make(place({"PMIX_RANK": "2"}))
