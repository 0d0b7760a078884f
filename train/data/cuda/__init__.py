"""L7: fast paths of the augmentation in CUDA. Importing this package registers them, and does not import CuPy.

A kernel draws its own random numbers, and runs all of a transform: without the kernels, a transform is tens or hundreds
of launches of CuPy. Read `minigrad/kernels/cuda/` first, then `stratified.cuh`, `augment.cu` and `randaugment.cu`.
"""

from train.data.cuda import augment, randaugment

__all__ = ["augment", "randaugment"]
