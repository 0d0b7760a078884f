"""Tensor: creation from data, conversion to arrays and numbers, comparisons, casts."""

import numpy as np
import pytest

import minigrad
from minigrad import Tensor
from minigrad.backend import to_device
from minigrad.nn import Parameter


def test_dtypes_of_new_tensors():
    assert Tensor([1.0, 2.0]).dtype == np.float32
    assert Tensor(2.5).dtype == np.float32
    assert Tensor([1, 2]).dtype == np.int64
    assert Tensor([True]).dtype == bool
    assert Tensor(np.ones(2)).dtype == np.float64
    assert Tensor(np.float64(1)).dtype == np.float64
    assert Tensor([1, 2], dtype="float16").dtype == np.float16


@pytest.mark.parametrize("data", [["a"], np.array([1j]), np.array([{}], object), np.array(["2026-01-01"], "M8[D]")])
def test_unsupported_dtypes_are_refused(data):
    with pytest.raises(TypeError, match="a Tensor holds float16, bfloat16, float32"):
        Tensor(data)


def test_ragged_lists_are_refused():
    with pytest.raises(ValueError, match="inhomogeneous"):
        Tensor([[1.0], [1.0, 2.0]])


def test_arrays_are_shared_and_tensors_detached():
    array = np.zeros(3)
    tensor = Tensor(array)
    array[0] = 1
    assert tensor.data[0] == 1 and tensor.numpy() is array
    x = Tensor([1.0], requires_grad=True)
    assert not Tensor(x * 2).requires_grad


def test_arithmetic_of_arrays_and_tensors():
    array, tensor = np.ones((2, 2), np.float32), Tensor(np.full((2, 2), 3, np.float32), requires_grad=True)
    results = (
        array + tensor,
        tensor + array,
        array * tensor,
        array @ tensor,
        tensor - 1,
        1 - tensor,
        2 / tensor,
        2**tensor,
    )
    for result in results:
        assert isinstance(result, Tensor) and result.dtype == np.float32 and result.requires_grad
    np.testing.assert_array_equal((array - tensor).numpy(), -2 * np.ones((2, 2)))
    np.testing.assert_array_equal(np.asarray(tensor), tensor.data)
    assert np.asarray(tensor, dtype=np.float64).dtype == np.float64


def test_dlpack_import_and_export():
    x = Tensor(np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(np.from_dlpack(x), x.data)
    y = minigrad.from_dlpack(np.arange(3.0))
    assert isinstance(y, Tensor) and y.tolist() == [0, 1, 2]


def test_conversion_to_python_numbers():
    x = Tensor([[1.5]])
    assert x.item() == 1.5 and float(x) == 1.5 and int(x) == 1 and bool(x) and len(x) == 1
    assert [row.tolist() for row in Tensor([[1, 2], [3, 4]])] == [[1, 2], [3, 4]]
    assert f"{Tensor(1.25):.1f} {Tensor(3)} {Tensor([1, 2])}" == "1.2 3 Tensor([1, 2])"
    assert [7, 8, 9][Tensor([1, 5, 2]).argmax()] == 8 and list(range(Tensor([2]))) == [0, 1]
    assert 3.0 in Tensor([[1.0, 2.0], [3.0, 4.0]]) and 5 not in Tensor([1, 2]) and Tensor(2) in Tensor([1, 2])
    for index in (Tensor(1.0), Tensor([1, 2]), Tensor(True)):
        with pytest.raises(TypeError, match="only an integer tensor with one element is an index"):
            range(index)
    with pytest.raises(TypeError, match=r"format '\.2f' needs a 0-d tensor, got shape \(2,\)"):
        f"{Tensor([1.0, 2.0]):.2f}"
    with pytest.raises(ValueError, match="exactly one element"):
        Tensor([1.0, 2.0]).item()
    with pytest.raises(TypeError, match="0-d tensor"):
        len(Tensor(1.0))


def test_comparisons_hash_argmax_and_isfinite():
    x, y = Tensor([1.0, 2.0, 3.0], requires_grad=True), Tensor([3.0, 2.0, 1.0])
    assert (x < y).tolist() == [True, False, False] and (x >= y).tolist() == [False, True, True]
    assert (x == y).tolist() == [False, True, False] and (x != 2).tolist() == [True, False, True]
    assert (~(x > 1)).tolist() == [True, False, False] and (x <= 1).tolist() == [True, False, False]
    assert type(Parameter(np.ones(1)) > 0) is Tensor
    assert len({x, y, x}) == 2
    assert x.argmax().item() == 2 and Tensor([[1, 5], [7, 0]]).argmax(1, keepdim=True).tolist() == [[1], [0]]
    empty = Tensor(np.empty((0, 3)))
    assert empty.argmax(1).shape == (0,) and empty.argmax(1, keepdim=True).shape == (0, 1)
    assert Tensor([[1, 5], [7, 0]]).argmax(keepdim=True).tolist() == [[2]] and Tensor(1).argmax(0, True).shape == ()
    for dim in (0, None):
        with pytest.raises(ValueError, match=r"argmax: needs at least one value.*\(0, 3\)"):
            empty.argmax(dim)
    assert Tensor([1.0, np.inf, np.nan]).isfinite().tolist() == [True, False, False]


def test_boolean_operators():
    x = Tensor([1, 2, 3])
    assert ((x > 1) & (x < 3) | (x == 1)).tolist() == [True, True, False]
    assert (True & (x > 1)).tolist() == (False | (x > 1)).tolist() == [False, True, True]
    assert (True ^ (x > 1)).tolist() == [True, False, False] and (6 & x).tolist() == [0, 2, 2]


def test_gradients_flow_through_casts():
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    y = x.float()
    assert y.dtype == np.float32 and x.double() is x and x.half().dtype == np.float16
    (y * 3).sum().backward()
    assert x.grad.dtype == np.float64 and x.grad.tolist() == [3, 3]
    assert not x.to(np.int64).requires_grad
    assert x.to("cpu") is x and x.cpu() is x


def test_unavailable_devices_are_refused():
    with pytest.raises(ValueError, match='"cpu", "cuda"'):
        Tensor([1.0], device="gpu")
    if not minigrad.cuda_is_available():
        with pytest.raises(RuntimeError, match=r"CuPy|GPU"):
            Tensor([1.0]).cuda()


def test_repr():
    assert repr(Tensor([1.0, 2.0], requires_grad=True)) == "Tensor([1., 2.], requires_grad=True)"
    assert repr(Tensor([1.0]) + Tensor([1.0], requires_grad=True)) == "Tensor([2.], grad_fn=<Add>)"
    assert repr(Tensor(np.ones(1))) == "Tensor([1.], dtype=float64)"
    assert repr(Tensor([1])) == "Tensor([1])"


def test_methods_are_also_functions_of_the_package():
    x = Tensor([[1.0, -2.0]])
    for name in ("exp", "abs", "sum", "mean", "flatten", "tanh"):
        np.testing.assert_array_equal(getattr(minigrad, name)(x).numpy(), getattr(x, name)().numpy())
    for name in minigrad.__all__:
        assert hasattr(minigrad, name), name


def test_grad_setter_checks_shape_and_requires_grad():
    x = Tensor([1.0, 2.0], requires_grad=True)
    x.grad = Tensor([3.0, 4.0])
    assert x.grad.tolist() == [3, 4]
    with pytest.raises(ValueError, match="grad must have"):
        x.grad = Tensor([1.0])
    with pytest.raises(RuntimeError, match="requires a gradient"):
        Tensor([1.0]).grad = Tensor([1.0])


def test_view_shares_memory_or_is_refused(device):
    x = Tensor(to_device(np.arange(6.0), device))
    x.view(2, 3).data[0, 0] = 7.0
    assert x[0].item() == 7
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        x.view(2, 3).t().view(6)
    assert x.view(2, 3).t().reshape(6).shape == (6,) and x[:0].view(0, 5).shape == (0, 5)


def test_clone_and_contiguous_copy(device):
    x = Tensor(to_device(np.arange(6.0).reshape(2, 3), device))
    for copy in (x.clone(), x.t().contiguous()):
        copy.data[...] = 0
    assert x.sum().item() == 15 and x.contiguous() is x
    assert x.t().clone().stride() == x.t().stride() and x.t().contiguous().stride() == (2, 1)


def test_in_place_methods_write_into_the_array(device):
    x = Tensor(to_device(np.arange(4.0).reshape(2, 2), device))
    shared = x.data
    x.add_(1).mul_(2).copy_(Tensor(to_device(np.array([5.0, 6.0]), device))).masked_fill_(x > 5, 0.5)
    assert x.data is shared and x.tolist() == [[5, 0.5], [5, 0.5]]
    assert x.zero_().data is shared and x.tolist() == [[0, 0], [0, 0]]
    x.uniform_(2, 3)
    assert x.data is shared and 2 <= x.amin().item() <= x.amax().item() < 3


def test_names_that_do_not_exist_are_explained():
    for owner, name, message in (
        (minigrad, "jit", "module 'minigrad' has no attribute 'jit': each op runs when it is called"),
        (minigrad, "complex64", "complex dtypes are out of scope"),
        (Tensor([1.0]), "to_sparse", "a Tensor has no attribute 'to_sparse': sparse layouts are out of scope"),
        (minigrad, "no_such_name", "module 'minigrad' has no attribute 'no_such_name'$"),
    ):
        with pytest.raises(AttributeError, match=message):
            getattr(owner, name)


def test_numpy_function_of_a_recorded_tensor_is_refused():
    x = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match="the gradient would be lost"):
        np.exp(x)
    assert isinstance(np.exp(x.detach()), Tensor) and np.asarray(x).tolist() == [1, 2]
