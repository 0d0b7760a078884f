"""L2: data-parallel training, over threads in one process and over processes."""

from minigrad.parallel.buckets import Buckets
from minigrad.parallel.processes import World, world
from minigrad.parallel.threads import Shards

__all__ = ["Buckets", "Shards", "World", "world"]
