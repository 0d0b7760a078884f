"""L6: fast paths of the models' blocks for inference on the CPU, in float32. Importing this package registers them.

Without gradients, nothing within a block needs to be saved: a block runs in one function, a chunk of pixels or images
at a time, in place, so that a chunk stays in the cache from the first operation to the last. Read `inference.py` first,
then `convnext.py` and `transformer.py`.

A fast path reads the parameters at every call, and caches nothing derived from them: a parameter may be changed in any
way between two calls.
"""

from models.cpu import convnext, transformer

__all__ = ["convnext", "transformer"]
