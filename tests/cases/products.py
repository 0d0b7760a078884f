"""Products of vectors and matrices that require a number of axes."""

import numpy as np
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad.testing import arrays
from tests.cases.case import Call, Case

SIDES = st.integers(0, 4)


@st.composite
def product_calls(draw, *letters, added=None, **options):
    """Arrays whose shapes are letters, such as "NK" and "KM"; `added`: an array that broadcasts to this shape."""
    sizes = {letter: draw(SIDES) for letter in "BNKM"}
    found = [draw(arrays(tuple(sizes[letter] for letter in word))) for word in letters]
    if added:
        shape = tuple(draw(st.sampled_from([1, sizes[letter]])) for letter in added)
        found = [draw(arrays(shape[draw(st.integers(0, len(shape))) :])), *found]
    return Call(tuple(found), {name: draw(strategy) for name, strategy in options.items()})


def product(name, equation, *letters):
    return Case(
        name=name,
        run=getattr(Tensor, name),
        calls=product_calls(*letters),
        oracle=lambda *xs: np.einsum(equation, *xs),
        torch=lambda torch, *xs: getattr(torch, name)(*xs),
    )


def sum_with_product(name, equation, *letters, added):
    factors = {"beta": st.sampled_from([1, 0.5, -2]), "alpha": st.sampled_from([1, 3, 0.5])}
    return Case(
        name=name,
        ops=4,
        run=getattr(Tensor, name),
        calls=product_calls(*letters, added=added) | product_calls(*letters, added=added, **factors),
        oracle=lambda x, a, b, beta=1, alpha=1: beta * x + alpha * np.einsum(equation, a, b),
        torch=lambda torch, *xs, **options: getattr(torch, name)(*xs, **options),
    )


CASES = [
    product("mm", "ij,jk", "NK", "KM"),
    product("bmm", "bij,bjk->bik", "BNK", "BKM"),
    product("mv", "ij,j", "NK", "K"),
    product("dot", "i,i", "K", "K"),
    product("outer", "i,j", "N", "M"),
    sum_with_product("addmm", "ij,jk", "NK", "KM", added="NM"),
    sum_with_product("baddbmm", "bij,bjk->bik", "BNK", "BKM", added="BNM"),
]
