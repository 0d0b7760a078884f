"""L3: methods of Tensor for products of vectors and matrices, of which `@` is the general form."""

from typing import TYPE_CHECKING

from minigrad.methods.base import Number
from minigrad.methods.sorting import Sorting

if TYPE_CHECKING:
    from minigrad.methods.base import Tensor


class Products(Sorting):
    """Products that require a number of axes."""

    __slots__ = ()

    def mm(self, mat2: "Tensor") -> "Tensor":
        """The product of two matrices: (N, K), (K, M) -> (N, M)."""
        _check_axes("mm", self.shape, 2, mat2.shape, 2)
        return self @ mat2

    def bmm(self, mat2: "Tensor") -> "Tensor":
        """The products of B pairs of matrices: (B, N, K), (B, K, M) -> (B, N, M). B does not broadcast."""
        _check_axes("bmm", self.shape, 3, mat2.shape, 3)
        if self.shape[0] != mat2.shape[0]:
            raise ValueError(f"bmm: both need the same number of matrices, got shapes {self.shape} and {mat2.shape}")
        return self @ mat2

    def mv(self, vec: "Tensor") -> "Tensor":
        """The product of a matrix and a vector: (N, K), (K,) -> (N,)."""
        _check_axes("mv", self.shape, 2, vec.shape, 1)
        return self @ vec

    def dot(self, tensor: "Tensor") -> "Tensor":
        """The inner product of two vectors: (K,), (K,) -> ()."""
        _check_axes("dot", self.shape, 1, tensor.shape, 1)
        return self @ tensor

    def outer(self, vec2: "Tensor") -> "Tensor":
        """The outer product of two vectors: yᵢⱼ = xᵢ · vec2ⱼ, (N,), (M,) -> (N, M)."""
        _check_axes("outer", self.shape, 1, vec2.shape, 1)
        return self.unsqueeze(1) * vec2

    def cross(self, other: "Tensor", dim: int = -1) -> "Tensor":
        """The cross product of vectors of size 3 along `dim`: y₀ = x₁ z₂ - x₂ z₁, and so on, for z = `other`."""
        if self.shape[dim] != 3 or other.shape[dim] != 3:
            raise ValueError(f"cross: axis {dim} must have size 3, got shapes {self.shape} and {other.shape}")
        return self.roll(-1, dim) * other.roll(-2, dim) - self.roll(-2, dim) * other.roll(-1, dim)

    def addmv(self, mat: "Tensor", vec: "Tensor", *, beta: Number = 1, alpha: Number = 1) -> "Tensor":
        """y = beta · x + alpha · mat @ vec: x broadcasts to (N,). beta: as in `addmm`."""
        return self._plus_product(mat.mv(vec), beta, alpha, "addmv")

    def addmm(self, mat1: "Tensor", mat2: "Tensor", *, beta: Number = 1, alpha: Number = 1) -> "Tensor":
        """y = beta · x + alpha · mat1 @ mat2: x broadcasts to (N, M). beta = 0: without x, so without its NaN."""
        return self._plus_product(mat1.mm(mat2), beta, alpha, "addmm")

    def baddbmm(self, batch1: "Tensor", batch2: "Tensor", *, beta: Number = 1, alpha: Number = 1) -> "Tensor":
        """y = beta · x + alpha · batch1 @ batch2: x broadcasts to (B, N, M). beta: as in `addmm`."""
        return self._plus_product(batch1.bmm(batch2), beta, alpha, "baddbmm")

    def _plus_product(self, product: "Tensor", beta: Number, alpha: Number, op: str) -> "Tensor":
        added = product.ndim - self.ndim
        if added < 0 or any(n not in (1, m) for n, m in zip(self.shape, product.shape[added:], strict=True)):
            raise ValueError(f"{op}: {self.shape} does not broadcast to the product's shape {product.shape}")
        product = product if alpha == 1 else product * alpha
        return product if beta == 0 else self + product if beta == 1 else self * beta + product


def _check_axes(op: str, first: tuple[int, ...], n: int, second: tuple[int, ...], m: int) -> None:
    if (len(first), len(second)) != (n, m):
        raise ValueError(f"{op}: needs a {n}-D and a {m}-D tensor, got shapes {first} and {second}; `@` takes any")
