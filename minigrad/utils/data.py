"""L5: datasets in memory, and batches of them, under the names of torch.utils.data."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import floor
from typing import Any

import numpy as np

from minigrad import distributed
from minigrad._tensor import Tensor
from minigrad.backend.random import Generator, default_generator
from minigrad.functional import stack
from minigrad.ops import checks
from minigrad.sampling import multinomial


class Dataset:
    """A dataset: a subclass defines `__getitem__(index)`, the sample at an index, and `__len__`."""

    def __getitem__(self, index: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no __getitem__")

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} has no __len__")

    def __add__(self, other: Any) -> "ConcatDataset":
        return ConcatDataset([self, other])


class TensorDataset(Dataset):
    """Sample i is the tuple of row i of each tensor. Arrays become Tensors; all have the same length."""

    def __init__(self, *tensors: Any) -> None:
        self.tensors = tuple(x if isinstance(x, Tensor) else Tensor(x) for x in tensors)
        if len({len(x) for x in self.tensors}) != 1:
            raise ValueError(f"TensorDataset: needs tensors of one length, got {[x.shape for x in self.tensors]}")

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(x[index] for x in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors[0])


class Subset(Dataset):
    """The samples of a dataset at `indices`."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, list):
            return self.dataset[[self.indices[i] for i in index]]
        return self.dataset[self.indices[index]]

    def __len__(self) -> int:
        return len(self.indices)


class ConcatDataset(Dataset):
    """The samples of several datasets, one after another."""

    def __init__(self, datasets: Iterable[Any]) -> None:
        self.datasets = list(datasets)
        self.ends = np.cumsum([len(dataset) for dataset in self.datasets]).tolist()

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"ConcatDataset: index {index} is out of range for {len(self)} samples")
        index %= len(self)
        which = bisect_right(self.ends, index)
        return self.datasets[which][index - (self.ends[which - 1] if which else 0)]

    def __len__(self) -> int:
        return int(self.ends[-1])


class SequentialSampler:
    """The indices of a dataset, in order."""

    def __init__(self, data_source: Any) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class SubsetRandomSampler:
    """The given indices, in random order."""

    def __init__(self, indices: Sequence[int], generator: Generator | None = None) -> None:
        self.indices, self.generator = indices, generator

    def __iter__(self) -> Iterator[int]:
        order = (self.generator or default_generator()).permutation(len(self.indices))
        return iter([self.indices[i] for i in order.tolist()])

    def __len__(self) -> int:
        return len(self.indices)


class RandomSampler(SubsetRandomSampler):
    """The indices of a dataset, in random order."""

    def __init__(self, data_source: Any, *, generator: Generator | None = None) -> None:
        super().__init__(range(len(data_source)), generator)


class WeightedRandomSampler:
    """`num_samples` indices with probabilities proportional to `weights`: `multinomial`."""

    def __init__(
        self, weights: Sequence[float], num_samples: int, replacement: bool = True, generator: Generator | None = None
    ) -> None:
        self.weights, self.num_samples = Tensor(weights, dtype=np.float64), num_samples
        self.replacement, self.generator = replacement, generator

    def __iter__(self) -> Iterator[int]:
        drawn = multinomial(self.weights, self.num_samples, self.replacement, generator=self.generator)
        return iter(drawn.tolist())

    def __len__(self) -> int:
        return self.num_samples


class DistributedSampler:
    """The indices of this rank: every world_size-th index of the dataset, from index `rank` on.

    All ranks get the same number of indices. Without drop_last, the first indices are repeated at the end.

    Args:
        num_replicas, rank: by default those of `minigrad.distributed`.
        shuffle: a new order for each epoch, the same on all ranks. Call `set_epoch` before each epoch.
        seed: the same on all ranks; the order is that of a generator with seed + epoch.
        drop_last: leave out the last indices instead.
    """

    def __init__(
        self, dataset: Any, num_replicas: int | None = None, rank: int | None = None, shuffle: bool = True,
        seed: int = 0, drop_last: bool = False,
    ) -> None:  # fmt: skip
        self.num_replicas = distributed.get_world_size() if num_replicas is None else num_replicas
        self.rank = distributed.get_rank() if rank is None else rank
        if not 0 <= self.rank < self.num_replicas:
            raise ValueError(f"Invalid rank {self.rank}, rank should be in the interval [0, {self.num_replicas - 1}]")
        self.dataset, self.shuffle, self.seed, self.drop_last, self.epoch = dataset, shuffle, seed, drop_last, 0
        count = len(dataset)
        self.num_samples = count // self.num_replicas if drop_last else -(-count // self.num_replicas)
        self.total_size = self.num_samples * self.num_replicas

    def __iter__(self) -> Iterator[int]:
        count = len(self.dataset)
        order = Generator(self.seed + self.epoch).permutation(count).tolist() if self.shuffle else list(range(count))
        return iter([order[i % count] for i in range(self.rank, self.total_size, self.num_replicas)])

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order of the next iteration."""
        self.epoch = epoch


class BatchSampler:
    """Lists of `batch_size` indices of a sampler; `drop_last`: without a smaller last one."""

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool) -> None:
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        return iter([order[a : a + self.batch_size] for a in range(0, len(self) * self.batch_size, self.batch_size)])

    def __len__(self) -> int:
        count = len(self.sampler)  # type: ignore[arg-type]
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)


def random_split(dataset: Any, lengths: Sequence[int | float], generator: Generator | None = None) -> list[Subset]:
    """Split a dataset at random into parts of these lengths, or of these fractions, whose sum is 1.

    Fractions are rounded down, and the samples that remain go to the first parts, one each.
    """
    total, sizes = len(dataset), list(lengths)
    if abs(sum(sizes) - 1) < 1e-9:
        if not all(0 <= fraction <= 1 for fraction in sizes):
            raise ValueError(f"random_split: fractions must be from 0 to 1, got {lengths}")
        sizes = [floor(total * fraction) for fraction in sizes]
        for i in range(total - int(sum(sizes))):
            sizes[i % len(sizes)] += 1
    if sum(sizes) != total:
        raise ValueError(f"random_split: the lengths must sum to {total}, the length of the dataset, got {lengths}")
    order = (generator or default_generator()).permutation(total).tolist()
    ends = np.cumsum([0, *sizes]).tolist()
    return [Subset(dataset, order[a:b]) for a, b in pairwise(ends)]


class DataLoader:
    """Batches of a dataset: `for images, labels in DataLoader(dataset, batch_size=32, shuffle=True): ...`

    Args:
        dataset: has `__getitem__` and `__len__`.
        batch_size: None: yield samples, not batches.
        shuffle: draw a new order for each epoch, from `generator`, by default the generator that `manual_seed` seeds.
        sampler: the indices, in their order, instead of `shuffle`.
        batch_sampler: the lists of indices of the batches, instead of batch_size, shuffle, sampler and drop_last.
        num_workers: must be 0: worker processes are out of scope.
        collate_fn: makes a batch of a list of samples; by default `default_collate`.
        pin_memory: no effect.
        drop_last: leave out the last batch if it is smaller.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[int] | None = None,
        batch_sampler: Iterable[Sequence[int]] | None = None,
        *,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        generator: Generator | None = None,
    ) -> None:
        if num_workers:
            raise ValueError(
                f"DataLoader: num_workers={num_workers}: worker processes are out of scope: pass num_workers=0"
            )
        if shuffle and sampler is not None:
            raise ValueError("DataLoader: give shuffle or sampler, and not both")
        if batch_size is not None and (batch_size := checks.integer(batch_size, "batch_size", "DataLoader")) < 1:
            raise ValueError(f"DataLoader: batch_size must be at least 1, got {batch_size}")
        if batch_sampler is not None and (batch_size != 1 or shuffle or sampler is not None or drop_last):
            raise ValueError("DataLoader: give batch_sampler, or batch_size, shuffle, sampler and drop_last")
        self.dataset, self.batch_size, self.drop_last, self.batch_sampler = (
            dataset,
            batch_size,
            drop_last,
            batch_sampler,
        )
        self.shuffle, self.sampler, self.collate_fn, self.generator = bool(shuffle), sampler, collate_fn, generator

    def __iter__(self) -> Iterator[Any]:
        if self.batch_sampler is not None:
            yield from (self._batch(list(indices)) for indices in self.batch_sampler)
            return
        order = self._order()
        if self.batch_size is None:
            collate = self.collate_fn or (lambda sample: sample)
            yield from (collate(self.dataset[i]) for i in order)
            return
        for start in range(0, len(order), self.batch_size):
            indices = order[start : start + self.batch_size]
            if len(indices) == self.batch_size or not self.drop_last:
                yield self._batch(indices)

    def _order(self) -> list[int]:
        if self.sampler is not None:
            return [int(i) for i in self.sampler]
        if self.shuffle:
            return (self.generator or default_generator()).permutation(len(self.dataset)).tolist()
        return list(range(len(self.dataset)))

    def _batch(self, indices: list[int]) -> Any:
        inner = self.dataset
        while type(inner) is Subset:
            inner = inner.dataset
        if type(inner) is TensorDataset and self.collate_fn is None:
            return list(self.dataset[indices])  # rows of all samples at once
        return (self.collate_fn or default_collate)([self.dataset[i] for i in indices])

    def __len__(self) -> int:
        if self.batch_sampler is not None:
            return len(self.batch_sampler)  # type: ignore[arg-type]
        count = len(self.dataset if self.sampler is None else self.sampler)  # type: ignore[arg-type]
        if self.batch_size is None:
            return count
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)


def default_collate(samples: list[Any]) -> Any:
    """A batch of samples: Tensors and arrays are stacked, numbers become a Tensor of int64 or float64, strings a list.

    Of dicts, lists and tuples, each component becomes a batch. As in PyTorch, a batch of tuples is a list.
    """
    first = samples[0]
    if isinstance(first, Tensor):
        return stack(samples)
    if isinstance(first, np.ndarray | np.generic):
        return Tensor(np.stack(samples))
    if isinstance(first, bool | int | float):
        return Tensor(np.array(samples))
    if isinstance(first, str | bytes):
        return samples
    if isinstance(first, Mapping):
        return {key: default_collate([sample[key] for sample in samples]) for key in first}
    if isinstance(first, Sequence):
        if len({len(sample) for sample in samples}) > 1:
            raise RuntimeError("each sample of a batch must have the same number of components")
        parts = [default_collate(list(part)) for part in zip(*samples, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else parts
    raise TypeError(f"default_collate: cannot batch {type(first).__name__}: pass a collate_fn")
