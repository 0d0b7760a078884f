"""L7: training data and augmentation. Importing this package registers the fast paths of the augmentation."""

from train.data import cuda

__all__ = ["cuda"]
