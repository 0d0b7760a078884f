"""L1: data-parallel training, over threads in one process and over processes."""

from minigrad.parallel.processes import World, world
from minigrad.parallel.threads import Shards

__all__ = ["Shards", "World", "world"]
