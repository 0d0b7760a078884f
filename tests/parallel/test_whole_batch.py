"""Any number of threads equals one thread: masks, batch normalisation, running statistics, gradients, errors."""

import subprocess
import sys
import textwrap
import time
from threading import Thread

import numpy as np
import pytest

import minigrad.functional as F
from minigrad import Tensor, nn
from minigrad.backend.batch import Rows, batch_sum, split, sums_over_batch, updates_buffers
from minigrad.parallel import Shards
from minigrad.parallel import threads as threads_module

THREADS = (1, 2, 3, 5)


class Branches(nn.Module):
    """Convolutions, several BatchNorms in two branches, one of them used twice, and dropout."""

    def __init__(self, momentum=0.1, checkpointing=False):
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=momentum)
        self.left = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=momentum), nn.Dropout(0.3))
        self.right, self.drop = nn.SyncBatchNorm(4, affine=False), nn.DropPath(0.4)
        self.last, self.head = nn.BatchNorm1d(4, momentum=momentum), nn.Linear(4, 3)
        self.left.checkpointing = checkpointing

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = self.drop(self.left(x)) + self.right(x) * 0.5 + x
        return self.head(self.last(F.relu(self.norm(x)).mean((2, 3))))


def images(count, dtype=np.float64):
    rng = np.random.default_rng(0)
    return (rng.standard_normal((count, 2, 5, 5)) * 3 + 10).astype(dtype), rng.standard_normal((count, 3)).astype(dtype)


def network(dtype=np.float64, **options):
    rng = np.random.default_rng(1)
    net = Branches(**options).to(dtype=dtype)
    for parameter in net.parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape)
    return net


def trained(threads, count=11, steps=2, dtype=np.float64, **options):
    """Outputs, gradients of the images and the parameters, buffers and counters after forward and backward."""
    net, (x, weights) = network(dtype, **options), images(count, dtype)

    def work(x, weights):
        x = Tensor(x, requires_grad=True)
        y = net(x)
        (y * Tensor(weights)).sum().backward()
        return y.numpy(), x.grad.numpy()

    with Shards(threads, seed=3) as shards:
        for _ in range(steps):
            results = shards.run(work, x, weights)
        draws = [generator.draws for generator in shards.generators]
    found = {"y": np.concatenate([y for y, _ in results]), "x": np.concatenate([grad for _, grad in results])}
    found |= {name: p.grad.numpy() for name, p in net.named_parameters()}
    return found | {name: b.numpy() for name, b in net.named_buffers()}, draws


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"checkpointing": True}], ids=str)
@pytest.mark.parametrize("count", [2, 4, 11])
@pytest.mark.parametrize("threads", THREADS[1:])
def test_threads_equal_one_thread(threads, count, options):
    expected, draws = trained(1, count, **options)
    found, own_draws = trained(threads, count, **options)
    assert own_draws == draws * threads and draws[0] > 0 and list(found) == list(expected)
    for name, value in expected.items():
        error = np.abs(found[name] - value).max() / max(np.abs(value).max(), 1e-3)
        assert error < 1e-12, f"{name}: {error}"


@pytest.mark.parametrize("threads", THREADS)
def test_masks_are_equal_bit_for_bit(threads):
    x = np.ones((13, 2, 3), np.float32)

    def work(x):
        return F.dropout(Tensor(x)).numpy(), nn.DropPath(0.5)(Tensor(x)).numpy()

    with Shards(1, seed=7) as one, Shards(threads, seed=7) as shards:
        for count in (13, 2, 1, 13):  # a batch with fewer images than threads in between
            expected, found = (np.concatenate(s.run(work, x[:count]), 1) for s in (one, shards))
            np.testing.assert_array_equal(found, expected)
            assert {generator.draws for generator in shards.generators} == {one.generators[0].draws}
        assert 0 < (expected == 0).mean() < 1


def test_rows_divide_the_part_of_a_process():
    """The masks of the images of a part, mirrored or not, in any number of threads."""
    x = np.ones((12, 5), np.float32)
    with Shards(1, seed=7) as one:
        (whole,) = one.run(lambda x: F.dropout(Tensor(x)).numpy(), x)
    for rows in (*split(12, 2), *split(12, 2, mirrored=True), Rows(12, ((3, 4),))):
        for threads in THREADS:
            with Shards(threads, seed=7) as shards:
                found = shards.run(lambda x: F.dropout(Tensor(x)).numpy(), x[rows.index], rows=rows)
                np.testing.assert_array_equal(np.concatenate(found), whole[rows.index])
                assert all(generator.rows is None for generator in shards.generators)


@pytest.mark.parametrize("threads", THREADS[1:])
def test_sums_are_in_the_order_of_shards(threads):
    """Bit for bit, in any order of arrival. The sum over processes of the calling thread is called once for each."""
    x, calls = np.random.default_rng(0).standard_normal((threads, 1000)).astype(np.float32), []

    def of_processes(x):
        calls.append(x.copy())
        x *= 3
        return x

    expected = sum(x[1:], x[0]) * 3
    with Shards(threads) as shards, sums_over_batch(of_processes):
        for slow in range(threads):

            def work(index, slow=slow):
                (i,) = index
                time.sleep(0.01 * (i == slow))
                first, second = batch_sum(x[i]), batch_sum(x[i])
                np.testing.assert_array_equal(first, expected)
                first[...] = 0  # a sum belongs to its thread
                np.testing.assert_array_equal(second, expected)

            shards.run(work, np.arange(threads))
    assert len(calls) == 2 * threads


def test_one_thread_updates_the_buffers():
    with Shards(3) as shards:
        assert shards.run(lambda x: updates_buffers(), np.arange(3)) == [True, False, False]
        with sums_over_batch(lambda x: x, updates=False):
            assert shards.run(lambda x: updates_buffers(), np.arange(3)) == [False] * 3
        assert shards.run(lambda x: updates_buffers(), np.arange(1)) == [True]
    assert updates_buffers()


def test_a_part_of_a_shared_batch_may_hold_one_value():
    net, x = nn.BatchNorm1d(2), np.array([[1.0, 2.0], [3.0, 6.0]], np.float32)
    with Shards(2) as shards:
        y = np.concatenate(shards.run(lambda x: net(Tensor(x)).numpy(), x))
        np.testing.assert_allclose(y, [[-1, -1], [1, 1]], rtol=1e-4)
        np.testing.assert_allclose(net.running_var.numpy(), 0.9 + 0.1 * np.array([2, 8]), rtol=1e-6)
        with pytest.raises(ValueError, match="more than one value per channel"):
            shards.run(lambda x: net(Tensor(x)), x[:1])


def test_batch_norm_of_threads_on_each_device(device):
    x, found = np.random.default_rng(0).standard_normal((5, 2, 3, 3)).astype(np.float32), []
    for threads in (1, 2):
        norm = nn.BatchNorm2d(2).to(device)

        def work(x, norm=norm):
            x = Tensor(x, requires_grad=True)
            (norm(x) ** 3).sum().backward()
            return x.grad.numpy()

        with Shards(threads) as shards:
            grad = np.concatenate(shards.run(work, Tensor(x, device=device).data))
        found.append([grad, norm.weight.grad.numpy(), norm.running_mean.numpy(), norm.running_var.numpy()])
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


def test_evaluation_does_not_sum_over_the_batch():
    def fail(x):
        raise AssertionError("batch_sum in evaluation")

    norm, x = nn.BatchNorm2d(2).eval(), Tensor(np.ones((2, 2, 3, 3), np.float32), requires_grad=True)
    with sums_over_batch(fail):
        norm(x).sum().backward()


def test_backward_runs_in_the_threads_of_forward():
    norm = nn.BatchNorm1d(2)
    with Shards(2) as shards:
        y, _ = shards.run(lambda x: norm(Tensor(x, requires_grad=True)), np.eye(2, dtype=np.float32))
    with pytest.raises(RuntimeError, match="waits in batch normalisation for a thread that has ended"):
        y.sum().backward()


FAILURES = {
    "an error in one thread": (
        """
        def work(x):
            if x[0] == 1:
                default_generator().uniform((1,))
                raise KeyError("original")
            batch_sum(x)
        run(work)
        """,
        "KeyError('original')",
    ),
    "an error in the sum over processes": (
        """
        def fail(x):
            raise OSError("network")
        with sums_over_batch(fail):
            run(batch_sum)
        """,
        "OSError('network')",
    ),
    "KeyboardInterrupt in one thread": (
        """
        def work(x):
            if x[0] == 2:
                raise KeyboardInterrupt("inside")
            batch_sum(x)
        run(work)
        """,
        "KeyboardInterrupt('inside')",
    ),
    "one thread sums less often": (
        "run(lambda x: [batch_sum(x) for _ in range(3 - x[0])])",
        "_EndedError('Shards: a thread waits in batch normalisation for a thread that has ended",
    ),
    "sums of different shapes": (
        "run(lambda x: batch_sum(np.ones(1 + x[0])))",
        "RuntimeError('Shards: all threads must",
    ),
    "two batches at the same time": (
        """
        for thread in shards.threads:
            thread.submit = lambda *job, submit=thread.submit: (time.sleep(0.05), submit(*job))[1]
        second = threading.Thread(target=run, args=[batch_sum])
        second.start()
        run(batch_sum)
        second.join()
        print("both done")
        """,
        "both done",
    ),
    "SIGINT": (
        """
        def work(x):
            if x[0] == 1:
                os.kill(os.getpid(), signal.SIGINT)
            while True:
                batch_sum(x)
        run(work)
        """,
        "KeyboardInterrupt()",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures_do_not_hang_the_other_threads(case):
    """The error of the thread that failed is raised, and the threads go on to work."""
    code, expected = FAILURES[case]
    lines = """
        import os, signal, threading, time, numpy as np
        from minigrad.backend.batch import batch_sum, sums_over_batch
        from minigrad.backend.random import default_generator
        from minigrad.parallel import Shards

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores SIGINT
        shards = Shards(3)

        def run(work):
            try:
                shards.run(work, np.arange(3))
            except BaseException as error:
                print(repr(error))
    """
    rest = """
        assert [x.tolist() for x in shards.run(batch_sum, np.arange(3))] == [[3]] * 3
        assert len({generator.draws for generator in shards.generators}) == 1
        shards.close()
    """
    script = "".join(textwrap.dedent(part) + "\n" for part in (lines, code, rest))
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert found.returncode == 0 and found.stdout.startswith(expected), found.stdout + found.stderr


@pytest.mark.parametrize("mirrored", [False, True])
def test_processes_with_threads_equal_one_process(mirrored):
    """Two threads, each with its own network, in place of two processes."""
    count, parts = 11, split(11, 2, mirrored=mirrored)
    expected, _ = trained(1, count, steps=1)
    sums, nets, outputs = threads_module._Sums(2, lambda x: x), [network(), network()], [None, None]
    x, weights = images(count)

    def process(rank):
        def work(x, weights):
            y = nets[rank](Tensor(x))
            (y * Tensor(weights)).sum().backward()
            return y.numpy()

        rows = parts[rank]
        try:
            with Shards(2 + rank, seed=3) as shards, sums_over_batch(lambda x: sums.add(rank, x)):
                outputs[rank] = np.concatenate(shards.run(work, x[rows.index], weights[rows.index], rows=rows))
        finally:
            sums.end()

    processes = [Thread(target=process, args=[rank]) for rank in (0, 1)]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    for rows, y in zip(parts, outputs, strict=True):
        np.testing.assert_allclose(y, expected["y"][rows.index], rtol=1e-11, atol=1e-11)
    for (name, p), (_, q) in zip(*(net.named_parameters() for net in nets), strict=True):
        np.testing.assert_allclose(p.grad.numpy() + q.grad.numpy(), expected[name], rtol=1e-10, atol=1e-10)
    for net in nets:
        for name, buffer in net.named_buffers():
            np.testing.assert_allclose(buffer.numpy(), expected[name], rtol=1e-12, err_msg=name)


def test_no_sum_is_completed_after_a_thread_has_ended():
    """An interrupted thread leaves an array, which must not be added."""
    sums, errors = threads_module._Sums(2, lambda x: x), []

    def add(shard):
        with pytest.raises(threads_module._EndedError) as caught:
            sums.add(shard, np.ones(1))
        errors.append(caught.value)

    waiting = Thread(target=add, args=[0])
    waiting.start()
    while not sums.arrays:
        time.sleep(0.001)
    sums.end()
    waiting.join()
    add(1)
    assert len(errors) == 2
