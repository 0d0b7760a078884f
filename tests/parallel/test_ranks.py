"""DistributedDataParallel, Buckets and minigrad.distributed on ranks of MPI."""

import json

import numpy as np
import pytest

from tests.parallel.mpiexec import needs_mpi, run

TRAINING = """
import json, sys
import numpy as np
import minigrad
from minigrad import Tensor, nn, optim
from minigrad import distributed as dist
from minigrad.nn import functional as F
from minigrad.nn.parallel import DistributedDataParallel as DDP
from minigrad.utils.data import DataLoader, DistributedSampler, TensorDataset

dist.init_process_group()
minigrad.manual_seed(dist.get_rank())  # other initial parameters: the constructor copies those of rank 0
model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 3)).double()
if len(sys.argv) > 1:
    minigrad.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 3)).double()
unused = nn.Linear(1, 1)
model[0].unused = unused
if dist.get_world_size() > 1:
    model = DDP(model, bucket_cap_mb=1e-4)
rng = np.random.default_rng(5)
data = TensorDataset(Tensor(rng.standard_normal((24, 6))), Tensor(rng.integers(0, 3, 24)))
sampler = DistributedSampler(data, seed=1)
optimizer = optim.AdamW(model.parameters(), lr=1e-2)
for epoch in range(2):
    sampler.set_epoch(epoch)
    for x, y in DataLoader(data, 12 // dist.get_world_size(), sampler=sampler):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
inner = getattr(model, "module", model)
assert unused.weight.grad is None
print(json.dumps([x.numpy().ravel().tolist() for x in inner.state_dict().values()]))
"""


@needs_mpi
@pytest.mark.parametrize("count", [2, 3])
def test_training_equals_one_process(count):
    ranks = [json.loads(out) for out in run(count, TRAINING, timeout=60).out]
    assert all(values == ranks[0] for values in ranks)  # bit for bit
    alone = json.loads(run(1, TRAINING, "alone", timeout=60).out[0])
    for a, b in zip(ranks[0], alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)


OPERATIONS = """
import numpy as np
from minigrad import Tensor
from minigrad import distributed as dist
from minigrad.parallel import Buckets, world

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
def mine():
    return Tensor(np.full(2, rank + 1.0, np.float32))
total = sum(range(1, size + 1))

for op, expected in (("SUM", total), ("AVG", total / size), ("MAX", size), ("MIN", 1)):
    for async_op in (False, True):
        x = mine()
        work = dist.all_reduce(x, dist.ReduceOp[op], async_op=async_op)
        assert work.wait() if async_op else work is None
        assert x.tolist() == [expected] * 2, (op, x)
x = mine()
dist.broadcast(x, src=1)
assert x.tolist() == [2, 2]
x = mine()
dist.reduce(x, dst=1)
assert x.tolist() == [total if rank == 1 else rank + 1] * 2
found = [mine() for _ in range(size)]
dist.all_gather(found, mine())
assert [x.tolist() for x in found] == [[r + 1.0] * 2 for r in range(size)]
rows, line = Tensor(np.zeros((size, 2), np.float32)), Tensor(np.zeros(2 * size, np.float32))
dist.all_gather_into_tensor(rows, mine())
dist.all_gather_into_tensor(line, mine())
assert rows.tolist() == [x.tolist() for x in found] and line.tolist() == rows.reshape(-1).tolist()
block = mine()
dist.reduce_scatter_tensor(block, Tensor(np.arange(2.0 * size, dtype=np.float32) * (rank + 1)))
assert block.tolist() == [2 * rank * total, (2 * rank + 1) * total]
dist.reduce_scatter(block, [Tensor(np.full(2, 10.0 * r + rank, np.float32)) for r in range(size)])
assert block.tolist() == [10 * rank * size + total - size] * 2
dist.scatter(block, [Tensor(np.full(2, r, np.float32)) for r in range(size)] if rank == 0 else None)
assert block.tolist() == [rank, rank]
found = [mine() for _ in range(size)] if rank == 1 else None
dist.gather(block, found, dst=1)
assert rank != 1 or [x.tolist() for x in found] == [[r, r] for r in range(size)]
objects = [None] * size
dist.all_gather_object(objects, {"rank": rank})
assert objects == [{"rank": r} for r in range(size)]
objects = [rank, "b"]
dist.broadcast_object_list(objects, src=1)
assert objects == [1, "b"]
dist.barrier()

# Buckets of two dtypes
a, b = Tensor(np.ones(3, np.float32), requires_grad=True), Tensor(np.ones(2), requires_grad=True)
buckets = Buckets([a, b], world(), 1e-6)
with buckets.reducing():
    ((a * (rank + 1)).sum().double() * b.sum()).backward()
assert a.grad.tolist() == [2 * total] * 3 and b.grad.tolist() == [3 * total] * 2
dist.destroy_process_group()
print("done")
"""


@needs_mpi
@pytest.mark.parametrize("count", [2, 3])
def test_operations_and_buckets(count):
    assert [out.split() for out in run(count, OPERATIONS, timeout=60).out] == [["done"]] * count


DIFFERENT = """
from minigrad import nn
from minigrad.nn.parallel import DistributedDataParallel
from minigrad.parallel import world

try:
    DistributedDataParallel(nn.Linear(2, 2 + world().rank))
except RuntimeError as error:
    print(error)
"""


@needs_mpi
def test_ranks_with_different_modules_are_refused():
    for out in run(2, DIFFERENT, timeout=60).out:
        assert "rank 0 has weight (2, 2) float32" in out and "rank 1 has weight (3, 2) float32" in out
