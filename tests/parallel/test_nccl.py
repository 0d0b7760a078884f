"""The engine for GPU arrays on a stand-in for NCCL: results, calls, streams, capture, errors; GPUs of ranks; start."""

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from minigrad.backend import to_device
from minigrad.parallel import World, rendezvous
from minigrad.parallel.nccl import Nccl, ThroughGpu, choose_gpu, require_one_gpu
from tests.parallel.fake_nccl import in_place_of_nccl
from tests.parallel.mpiexec import ROOT

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8, np.int32, np.int64, bool]


class AbortError(Exception):
    pass


def stop(message):
    if threading.current_thread().name != "minigrad-nccl":
        raise AbortError(message)


def on_threads(size, function):
    """Call `function(world)` in a thread for each rank, with NCCL's stand-in; return the results."""
    identity, ready, results, errors = [], threading.Event(), [None] * size, []

    def send_to_all(message):
        if message is not None:
            identity.append(message)
            ready.set()
        assert ready.wait(10)
        return identity[0]

    def rank_thread(rank):
        try:
            world = World(rank, size, rank, gpu=lambda: Nccl(rank, size, send_to_all, stop))
            world._host = ThroughGpu(lambda: world._gpu_engine)
            results[rank] = function(world)
            world.close()
        except BaseException as error:
            errors.append(error)
            nccl.barrier.abort()

    with in_place_of_nccl(size) as nccl:
        threads = [threading.Thread(target=rank_thread, args=[rank]) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        if errors:
            raise errors[0]
        assert sorted(nccl.destroyed) == list(range(size))
    return results


@pytest.fixture
def engine():
    """Rank 1 of 2, with NCCL's stand-in: the other rank has the same arrays. Returns the engine, NCCL and its log."""
    with in_place_of_nccl(2, alone=True) as nccl:
        made = Nccl(1, 2, lambda message: bytes(range(128)).hex(), stop, timeout=0.3)
        nccl.local.log.clear()
        yield SimpleNamespace(engine=made, nccl=nccl, log=nccl.local.log)
        made.closed.set()


def hangs(monkeypatch, engine):
    """Operations finish after 10 seconds."""
    end = time.monotonic() + 10
    monkeypatch.setattr(engine.engine.cuda.Event, "done", property(lambda self: time.monotonic() > end))


def draw(rng, size, shape, dtype):
    every = rng.integers(0, 5, (size, *shape))
    return [x.astype(dtype) for x in every]


def expected(every, op="sum"):
    x = np.stack(every)
    if x.dtype == bool:
        return x.any(0) if op in ("sum", "max") else x.all(0)
    return getattr(x.astype(np.float64), op)(0).astype(x.dtype)


@pytest.mark.parametrize("size", [2, 3])
def test_operations_equal_numpy(size):
    def work(world):
        rng = np.random.default_rng(0)  # all ranks draw the arrays of all ranks
        for dtype in DTYPES:
            for op in ("sum", "max", "min", *(["mean"] if dtype in DTYPES[:4] else [])):
                a, b, c = (draw(rng, size, shape, dtype) for shape in ((3, 4), (), (0,)))
                xs = [to_device(every[world.rank].copy(), "cuda") for every in (a, b, c)]
                if world.rank == 0:
                    xs[0] = to_device(a[0].T.copy(), "cuda").T  # another memory layout
                world.all_reduce(*xs, op=op)
                for x, every in zip(xs, (a, b, c), strict=True):
                    assert x.dtype == dtype
                    np.testing.assert_allclose(x.get().astype(float), expected(every, op).astype(float), rtol=1e-2)
            a, b = draw(rng, size, (5,), dtype), draw(rng, size, (4, 2), dtype)
            x, y = to_device(a[world.rank].copy(), "cuda"), to_device(b[world.rank].copy(), "cuda")[:, ::-1]
            work = world.start_all_reduce(x, y)
            work.wait()
            work.wait()
            np.testing.assert_array_equal(x.get(), expected(a))
            np.testing.assert_array_equal(y.get(), expected(b)[:, ::-1])
            x, y = to_device(a[world.rank].copy(), "cuda"), to_device(b[world.rank].copy(), "cuda").T
            world.broadcast(x, y, root=1)
            np.testing.assert_array_equal(x.get(), a[1])
            np.testing.assert_array_equal(y.get(), b[1].T)
            for found, right in zip(world.all_gather(to_device(b[world.rank], "cuda")), b, strict=True):
                np.testing.assert_array_equal(found.get(), right)
            c = draw(rng, size, (2 * size,), dtype)
            part = world.reduce_scatter(to_device(c[world.rank].copy(), "cuda"))
            np.testing.assert_array_equal(part.get(), expected(c)[2 * world.rank : 2 * world.rank + 2])
            out = to_device(np.zeros(5 * size, dtype), "cuda")
            world.all_gather_into(to_device(a[world.rank], "cuda"), out)
            np.testing.assert_array_equal(out.get(), np.concatenate(a))

    on_threads(size, work)


def test_without_mpi_host_arrays_and_objects_go_through_the_gpu():
    def work(world):
        x, y = np.arange(3.0) + world.rank, np.full((2, 2), world.rank)[:, ::-1]
        world.all_reduce(x)
        world.start_all_reduce(y).wait()
        np.testing.assert_array_equal(x, [1, 3, 5])
        np.testing.assert_array_equal(y, 1)
        world.broadcast(x, root=1)
        np.testing.assert_array_equal(world.reduce_scatter(np.arange(4)), [[0, 2], [4, 6]][world.rank])
        out = np.zeros(2)
        world.all_gather_into(np.ones(1) * world.rank, out)
        np.testing.assert_array_equal(out, [0, 1])
        world.barrier()
        with pytest.raises(ValueError, match=r"rank 1 called broadcast\(float64 \(4,\)"):
            world.broadcast(np.ones(3 + world.rank))
        return world.all_gather_objects({"rank": world.rank}), world.broadcast_object([world.rank], root=1)

    assert on_threads(2, work) == [([{"rank": 0}, {"rank": 1}], [1])] * 2


def test_all_reduce_is_one_group_in_place_on_the_current_stream(engine):
    x = to_device(np.ones((3, 4), np.float32), "cuda")
    y, z = to_device(np.ones(5, ml_dtypes.bfloat16), "cuda"), to_device(np.ones(2, bool), "cuda")
    with engine.engine.cuda.Stream(non_blocking=True) as stream:
        engine.engine.all_reduce([x, y, z], "sum")
    p, q, r = x.data.ptr, y.data.ptr, z.data.ptr
    assert engine.log[:-1] == [
        ("groupStart",),
        ("allReduce", p, p, 12, 7, 0, stream.ptr),  # float32, sum
        ("allReduce", q, q, 5, 9, 0, stream.ptr),  # bfloat16
        ("allReduce", r, r, 2, 1, 2, stream.ptr),  # bool: uint8, max
        ("groupEnd",),
    ]
    assert engine.log[-1][:2] == ("record", stream.ptr)  # for the timeout
    np.testing.assert_array_equal(x.get(), 2)


def test_started_sums_run_on_a_stream_joined_by_events(engine):
    x = to_device(np.ones(3, np.float16), "cuda")
    with engine.engine.cuda.Stream(non_blocking=True) as stream:
        work = engine.engine.start_all_reduce([x])
        assert work in engine.engine.works
        del engine.log[5]  # for the timeout
        work.wait()
    side, main = engine.engine.side.ptr, stream.ptr
    assert side != main
    ready, done = engine.log[0][2], engine.log[-1][2]
    assert ready != done
    assert engine.log == [
        ("record", main, ready),
        ("wait", side, ready),
        ("groupStart",),
        ("allReduce", x.data.ptr, x.data.ptr, 3, 6, 0, side),
        ("groupEnd",),
        ("record", side, done),
        ("wait", main, done),
    ]
    assert not engine.engine.works


def test_operations_can_be_captured_and_replayed(engine):
    cuda, made = engine.engine.cuda, engine.engine
    x, y = (to_device(np.full((2, 2), v, np.float32), "cuda") for v in (1, 3))
    with cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        made.last = None
        work = made.start_all_reduce([y.T])
        made.all_reduce([x], "sum")
        work.wait()
        x += y
        assert made.last is None  # events of a graph cannot be asked
        graph = stream.end_capture()
    np.testing.assert_array_equal(x.get(), 1)
    graph.launch()
    np.testing.assert_array_equal(x.get(), 8)  # 2 · 1 + 2 · 3
    graph.launch()
    np.testing.assert_array_equal(x.get(), 28)  # 2 · 8 + 2 · 6


@pytest.mark.parametrize("captured", [False, True])
def test_close_does_not_wait_for_cuda_graphs(engine, captured):
    """ncclCommDestroy waits until the graphs with operations of the communicator are destroyed."""
    made, x = engine.engine, to_device(np.ones(3, np.float32), "cuda")
    with made.cuda.Stream(non_blocking=True) as stream:
        if captured:
            stream.begin_capture()
        made.all_reduce([x], "sum")
        made.all_reduce([x], "sum")
        graph = stream.end_capture() if captured else None
    engine.log.clear()
    made.close()
    barriers = [call[0] for call in engine.log].count("allReduce")
    assert (engine.nccl.destroyed, barriers) == (([], 1) if captured else ([1], 0))
    communicator = weakref.ref(made.comm)
    del graph
    made.comm = None
    engine.log.clear()
    gc.collect()
    assert (communicator() is not None) == captured  # CuPy's destructor would wait, too


def test_checks_are_omitted_in_capture(engine):
    world = World(1, 2, gpu=lambda: engine.engine)
    world._host = ThroughGpu(lambda: engine.engine)
    x = to_device(np.ones(3, np.float32), "cuda")
    world.broadcast(x)
    calls = [call[0] for call in engine.log]
    assert calls.count("allGather") == 1
    with engine.engine.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        world.broadcast(x)
        stream.end_capture()
    assert [call[0] for call in engine.log[len(calls) :]] == ["groupStart", "broadcast", "groupEnd"]


def test_ranks_are_connected_before_capture():
    with in_place_of_nccl(2, alone=True):
        import cupy

        stream = cupy.cuda.Stream(non_blocking=True)
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match="connects the ranks: call it before CUDA graph capture"):
                Nccl(0, 2, str, stop)
        finally:
            stream.end_capture()


def test_errors_name_rank_and_operation(engine):
    x = to_device(np.ones(3, np.float32), "cuda")
    engine.nccl.error = "NCCL_ERROR_INVALID_USAGE: invalid usage"
    with pytest.raises(RuntimeError, match=r"rank 1 of 2: all_reduce: NCCL_ERROR_INVALID_USAGE.*the same GPU"):
        engine.engine.all_reduce([x], "sum")
    assert engine.log[-1] == ("groupEnd",)  # the group is closed
    engine.engine.all_reduce([x], "sum")
    with pytest.raises(TypeError, match="all_reduce on a GPU: NCCL has no int16"):
        engine.engine.all_reduce([to_device(np.ones(3, np.int16), "cuda")], "sum")
    np.testing.assert_array_equal(engine.engine.all_gather(to_device(np.ones(3, np.int16), "cuda"))[1].get(), 1)


def test_operation_that_does_not_finish_aborts(engine, monkeypatch):
    hangs(monkeypatch, engine)
    with pytest.raises(AbortError, match=r"barrier has not finished after 0\.3 s: a rank has not called it, or hangs"):
        engine.engine.barrier()


def test_errors_of_other_ranks_abort_a_wait(engine, monkeypatch):
    engine.engine.timeout = 60
    engine.nccl.async_error = "NCCL_ERROR_REMOTE_ERROR: remote process exited or there was a network error"
    hangs(monkeypatch, engine)
    with pytest.raises(AbortError, match=r"barrier: NCCL_ERROR_REMOTE_ERROR.*: another rank has ended, or the network"):
        engine.engine.barrier()


@pytest.mark.parametrize("cause", ["timeout", "error"])
def test_a_thread_aborts_if_an_operation_hangs(engine, monkeypatch, cause):
    messages = []
    engine.engine.abort_all = messages.append
    hangs(monkeypatch, engine)
    if cause == "error":
        engine.engine.timeout = 60
        engine.nccl.async_error = "NCCL_ERROR_REMOTE_ERROR: remote process exited"
    engine.engine.broadcast([to_device(np.ones(3), "cuda")], 0)
    end = time.monotonic() + 10
    while not messages and time.monotonic() < end:
        time.sleep(0.05)
    assert messages[0].startswith(
        "broadcast has not finished" if cause == "timeout" else "broadcast: NCCL_ERROR_REMOTE"
    )


def test_finished_operations_do_not_time_out(engine):
    messages = []
    engine.engine.abort_all = messages.append
    engine.engine.broadcast([to_device(np.ones(3), "cuda")], 0)
    time.sleep(2.2)  # two rounds of the thread, longer than the timeout
    assert not messages and engine.engine.last is None


def test_ranks_that_do_not_come_abort_the_start():
    with in_place_of_nccl(2, alone=True) as nccl:

        def never(*arguments):
            time.sleep(5)

        nccl.NcclCommunicator = never
        with pytest.raises(AbortError, match=r"connecting the ranks has not finished after 0\.2 s"):
            Nccl(0, 2, lambda message: message, stop, timeout=0.2)


def test_missing_nccl_names_the_package():
    with in_place_of_nccl(2, alone=True) as nccl:
        nccl.available = False
        with pytest.raises(RuntimeError, match="pip install nvidia-nccl-cu13"):
            Nccl(0, 2, str, stop)


def test_abort_and_close_release_nccl(engine):
    engine.engine.abort(1)
    assert engine.nccl.aborted == [1]
    engine.engine.close()
    assert not engine.nccl.destroyed


@pytest.mark.parametrize(
    ("visible", "local_rank", "count", "expected"),
    [
        (None, 1, 4, "1"),
        (None, 0, 0, "0"),
        (None, 3, 0, "3"),  # no device files: not known
        ("4,6", 1, 8, "6"),
        ("GPU-a, GPU-b", 0, 8, "GPU-a"),
        ("2", 3, 8, None),  # the launcher's choice
        ("", 1, 8, None),
        ("0", None, 8, None),
        (None, 4, 4, "there are 4 GPUs here: start at most 4 ranks per machine"),
        ("0,1", 2, 8, "there are 2 GPUs here"),
        (None, None, 4, "set LOCAL_RANK"),
    ],
)
def test_gpu_of_a_rank(visible, local_rank, count, expected):
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    chosen, problem = choose_gpu(environ, local_rank, count)
    if expected is None or len(expected) < 9:
        assert (chosen, problem) == (expected, "")
    else:
        assert chosen is None and expected in problem
        with pytest.raises(RuntimeError, match=f"no GPU for local rank 3: {problem}"):
            require_one_gpu(problem, False, 3)


def test_cupy_that_sees_several_gpus_is_explained():
    with in_place_of_nccl(2, alone=True):
        import cupy

        require_one_gpu("", True, 1)
        cupy.cuda.runtime.getDeviceCount = lambda: 4
        require_one_gpu("", False, 1)
        with pytest.raises(RuntimeError, match=r"CuPy sees 4 GPUs: call .*world\(\) before CuPy is imported"):
            require_one_gpu("", True, 1)


def test_message_by_files_ignores_files_of_an_earlier_job(tmp_path):
    folder, found = tmp_path / "job", {}
    folder.mkdir()
    (folder / "0").write_text('{"nonce": "a", "message": "old", "readers": ["b", "c"]}')
    (folder / "1").write_text('{"nonce": "b", "seen": "a"}')
    (folder / "2").write_text('{"nonce": "c", "se')

    def come(rank, delay):
        time.sleep(delay)
        found[rank] = rendezvous.send_to_all("new" if rank == 0 else None, folder, rank, 3, 20)

    threads = [threading.Thread(target=come, args=args) for args in ((0, 0.1), (1, 0), (2, 0.2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: "new", 1: "new", 2: "new"}
    assert not folder.exists()


TORCHRUN = """
import os
import numpy as np
from tests.parallel.fake_nccl import in_place_of_nccl
from minigrad.backend import to_device
from minigrad.parallel import world

with in_place_of_nccl(2, alone=True) as nccl:
    w = world()
    x, y = to_device(np.ones(3, np.float32), "cuda"), np.ones(2)
    w.all_reduce(x, y)
    print(w, x.get(), y, os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    w.close()
    print(len(nccl.destroyed))
"""


def test_ranks_of_torchrun_meet_by_files(tmp_path):
    environ = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", TORCHRUN],
            env={**environ, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        outputs = [job.communicate(timeout=60)[0] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    for rank, out in enumerate(outputs):
        assert out == f"World(rank={rank}, size=2, local_rank={rank}) [2. 2. 2.] [2. 2.] {rank}\n1\n"
    assert not list(tmp_path.iterdir())


def test_missing_rank_is_named(tmp_path):
    with pytest.raises(TimeoutError, match=r"rank 0 of 3: after 0\.1 s .* no file of ranks \[1, 2\]"):
        rendezvous.send_to_all("message", tmp_path / "job", 0, 3, 0.1)


@pytest.mark.parametrize("environ", [{"LOCAL_WORLD_SIZE": "2"}, {"MASTER_ADDR": "node1"}])
def test_several_machines_need_a_shared_path(environ, tmp_path):
    with pytest.raises(RuntimeError, match="set MINIGRAD_SHARED_FILE to a path on a shared file system"):
        rendezvous.folder_for(environ, 4)
    environ["MINIGRAD_SHARED_FILE"] = str(tmp_path / "a")
    assert rendezvous.folder_for({**environ, "SLURM_JOB_ID": "7"}, 4).name == "a-7-0-0-0-0"


def test_jobs_have_different_folders():
    base = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "x/..y", "LOCAL_WORLD_SIZE": "4"}
    folders = {
        rendezvous.folder_for({**base, **more}, 4).name for more in ({}, {"MASTER_PORT": "1"}, {"SLURM_JOB_ID": "2"})
    }
    assert len(folders) == 3 and all("/" not in name and "xy" in name for name in folders)
