"""minigrad.distributed alone; on ranks that are threads, and, in tests/parallel/test_ranks.py, on ranks of MPI."""

import numpy as np
import pytest

import minigrad
from minigrad import Tensor
from minigrad import distributed as dist
from minigrad.utils.data import DataLoader, DistributedSampler, TensorDataset


@pytest.fixture
def alone():
    dist.init_process_group()
    yield
    dist.destroy_process_group()


def test_one_process_is_rank_0_of_1(alone):
    assert dist.is_available() and dist.is_initialized()
    assert (dist.get_rank(), dist.get_world_size(), dist.get_node_local_rank()) == (0, 1, 0)
    x = Tensor([1.0, 2.0])
    assert dist.all_reduce(x) is None and dist.all_reduce(x, dist.ReduceOp.AVG, async_op=True).wait() is True
    assert dist.all_reduce(x, async_op=True).wait() and dist.barrier(async_op=True).wait()
    dist.broadcast(x)
    out, block = [Tensor([0.0, 0.0])], Tensor([[0.0, 0.0]])
    dist.all_gather(out, x)
    dist.all_gather_into_tensor(block, x)
    assert x.tolist() == out[0].tolist() == block[0].tolist() == [1, 2]
    for op in (dist.ReduceOp.SUM, dist.ReduceOp.AVG):
        out = Tensor([0.0, 0.0])
        dist.reduce_scatter_tensor(out, x, op)
        assert out.tolist() == [1, 2]
    out = Tensor([0.0, 0.0])
    dist.scatter(out, [x])
    dist.gather(x, [block[0]])
    dist.reduce(x)
    assert out.tolist() == x.tolist() == [1, 2]
    objects = [None]
    dist.all_gather_object(objects, {"a": [1, None]})
    dist.broadcast_object_list(objects)
    assert objects == [{"a": [1, None]}]


def test_operations_need_an_initialized_group():
    assert not dist.is_initialized()
    with pytest.raises(ValueError, match="Default process group has not been initialized"):
        dist.all_reduce(Tensor([1.0]))
    with pytest.raises(ValueError, match="Default process group has not been initialized"):
        dist.get_rank()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"backend": "ucc"}, "backend must be None or one of mpi, nccl, gloo, got 'ucc'"),
        ({"init_method": "tcp://10.1.1.20:23456"}, "the ranks find each other by their launcher"),
        ({"world_size": 2, "rank": 1}, "the launcher started rank 0 of 1, got rank=1, world_size=2"),
    ],
)
def test_arguments_of_init(options, message):
    with pytest.raises(ValueError, match=message):
        dist.init_process_group(**options)
    assert not dist.is_initialized()


def test_arguments_of_operations(alone):
    x = Tensor([1.0, 2.0])
    for call, message in (
        (lambda: dist.init_process_group("cpu:gloo,cuda:nccl"), "twice"),
        (lambda: dist.all_reduce(x, group=object()), "group must be None: all ranks are one group"),
        (lambda: dist.all_gather([], x), "tensor_list must have one item for each rank, 1, got 0"),
        (lambda: dist.gather(x), "gather_list must have one item for each rank, 1"),
        (lambda: dist.all_gather([Tensor([1.0])], x), r"the result is \(2,\) float32, and the Tensor for it \(1,\)"),
        (lambda: dist.all_gather_into_tensor(Tensor([1.0]), x), r"output_tensor must have 2 elements of float32"),
        (lambda: dist.reduce_scatter_tensor(x, Tensor([1.0])), r"input must have 2 elements of float32, got \(1,\)"),
        (lambda: dist.reduce_scatter_tensor(x, x, dist.ReduceOp.MAX), "must be ReduceOp.SUM or ReduceOp.AVG"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="JSON"):
        dist.all_gather_object([None], object())


def test_absent_names_say_what_to_use():
    with pytest.raises(AttributeError, match=r"all ranks take part in each operation. Use distributed.all_gather"):
        dist.send  # noqa: B018
    with pytest.raises(AttributeError, match="Use the group of all ranks"):
        dist.new_group  # noqa: B018
    assert minigrad.distributed is dist


@pytest.mark.parametrize("count, ranks", [(10, 1), (10, 2), (10, 3), (11, 4), (3, 5), (2, 7), (12, 4)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_sampler_gives_each_rank_its_indices(count, ranks, drop_last):
    """PyTorch's rule: the order is padded by repetition, or cut, to a multiple of the ranks; rank r takes every
    ranks-th index from r on."""
    parts = [list(DistributedSampler(range(count), ranks, r, shuffle=False, drop_last=drop_last)) for r in range(ranks)]
    total = count // ranks * ranks if drop_last else -(-count // ranks) * ranks
    padded = (list(range(count)) * ranks)[:total]
    assert parts == [padded[r::ranks] for r in range(ranks)]
    samplers = [DistributedSampler(range(count), ranks, r, seed=3, drop_last=drop_last) for r in range(ranks)]
    orders = []
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        found = [list(sampler) for sampler in samplers]
        assert [len(part) for part in found] == [len(sampler) for sampler in samplers] == [total // ranks] * ranks
        merged = [index for row in zip(*found, strict=True) for index in row]
        assert sorted(merged[:count]) == list(range(count)) if not drop_last else len(set(merged)) == total
        orders.append(merged)
    assert orders[0] != orders[1] or count < 4


def test_sampler_in_a_data_loader(alone):
    dataset = TensorDataset(Tensor(np.arange(6.0)))
    loader = DataLoader(dataset, 2, sampler=DistributedSampler(dataset, shuffle=False))
    assert [batch[0].tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ValueError, match=r"Invalid rank 2, rank should be in the interval \[0, 1\]"):
        DistributedSampler(dataset, 2, 2)
