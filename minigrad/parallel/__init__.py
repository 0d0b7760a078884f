"""L1: data-parallel training in one process."""

from minigrad.parallel.threads import Shards

__all__ = ["Shards"]
