"""L0: PyTorch's names that minigrad does not have, with the reason and the nearest thing that exists.

The package, `nn`, `functional`, `optim` and `autograd` look up a missing name here, in their `__getattr__`; Tensor has
an attribute for each name.
"""

import sys
from collections.abc import Callable
from typing import Any, NoReturn

_NO_RECURRENCE = "recurrent layers are out of scope; attention and convolutions process sequences here"
_NO_COMPILER = "each op runs when it is called, without a compiler"
_NO_COMPLEX = "complex dtypes are out of scope: float16, bfloat16, float32 and float64 exist"
_NO_SPARSE = "sparse layouts are out of scope: all tensors are dense"
_FIRST_ORDER = "backward is first-order: gradients of gradients do not exist"
_NO_QUANTIZATION = "quantized dtypes are out of scope"

# reason -> names, with what to use instead
ABSENT: dict[str, dict[str, str]] = {
    _NO_RECURRENCE: {
        **dict.fromkeys(("RNN", "LSTM", "GRU", "RNNBase"), "nn.TransformerEncoderLayer or nn.Conv1d"),
        **dict.fromkeys(("RNNCell", "LSTMCell", "GRUCell"), "nn.Linear in a Python loop"),
    },
    _NO_COMPILER: {
        "compile": "minigrad.cuda_graph.GraphedStep, which captures a training step on a GPU",
        **dict.fromkeys(
            ("jit", "fx", "export", "_dynamo"), "the model itself; models.summary.summary(model, shape) is its table"
        ),
        "onnx": "minigrad.save, for .npz and .safetensors files",
    },
    "transforms of functions are out of scope": {
        "vmap": "a leading batch axis: ops broadcast",
        "func": "minigrad.autograd.grad",
    },
    _NO_SPARSE: {
        **dict.fromkeys(
            ("sparse", "sparse_coo_tensor", "sparse_csr_tensor", "to_sparse", "is_sparse", "to_dense", "EmbeddingBag",
             "embedding_bag"),
            "a dense tensor; F.embedding and scatter_add read and write rows by index",
        ),
    },
    _NO_COMPLEX: {
        **dict.fromkeys(
            ("complex", "complex64", "complex128", "cfloat", "cdouble", "view_as_complex", "view_as_real", "polar",
             "is_complex", "real", "imag", "conj", "angle"),
            "two real tensors",
        ),
        **dict.fromkeys(("fft", "stft", "istft"), "np.fft on x.numpy(), which is not recorded"),
    },
    _FIRST_ORDER: {
        **dict.fromkeys(("hessian", "jacobian", "hvp", "vhp", "jvp"), "minigrad.autograd.grad, row by row"),
        "gradgradcheck": "minigrad.testing.gradcheck",
    },
    _NO_QUANTIZATION: {
        **dict.fromkeys(
            ("quantize_per_tensor", "quantization", "ao", "qint8", "quint8", "quantize_dynamic"),
            "float16 or bfloat16: x.half(), minigrad.autocast",
        ),
    },
    "this part of PyTorch is out of scope": {
        "linalg": "np.linalg on x.numpy(), which is not recorded",
        "distributions": "minigrad.rand, randn, bernoulli and multinomial",
        "multiprocessing": "minigrad.parallel.Shards, which splits a batch over threads",
        "hub": "models.create_model",
        "mps": 'the devices "cpu" and "cuda"',
        "DataParallel": "nn.parallel.DistributedDataParallel, or minigrad.parallel.Shards for threads",
        "profiler": "cProfile, or Nsight Systems on a GPU",
    },
    "all ranks take part in each operation": {
        **dict.fromkeys(
            ("send", "recv", "isend", "irecv", "P2POp", "batch_isend_irecv", "all_to_all", "all_to_all_single"),
            "distributed.all_gather or distributed.broadcast",
        ),
        **dict.fromkeys(
            ("new_group", "new_subgroups", "ProcessGroup", "init_device_mesh", "DeviceMesh"), "the group of all ranks"
        ),
        **dict.fromkeys(("gather_object", "scatter_object_list"), "distributed.all_gather_object"),
        "rpc": "distributed.broadcast_object_list",
        "monitored_barrier": "distributed.barrier",
        "is_torchelastic_launched": "distributed.get_world_size",
    },
    "memory formats are arrays' strides here": {
        **dict.fromkeys(
            ("channels_last", "contiguous_format", "preserve_format", "memory_format"),
            "x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for channels-last images",
        ),
        **dict.fromkeys(("untyped_storage", "storage", "data_ptr"), "x.data, the array"),
    },
    "layers and functions of images and rows are 1-D and 2-D": {
        **dict.fromkeys(("Conv3d", "conv3d", "MaxPool3d", "AvgPool3d", "BatchNorm3d"), "nn.Conv2d, of slices"),
        **dict.fromkeys(("ConvTranspose1d", "conv_transpose1d"), "nn.ConvTranspose2d, of x.unsqueeze(-2)"),
        **dict.fromkeys(
            ("AdaptiveMaxPool2d", "adaptive_max_pool2d", "AdaptiveMaxPool1d", "adaptive_max_pool1d"),
            "x.amax((-2, -1)) for one window, else F.max_pool2d",
        ),
        **dict.fromkeys(("grid_sample", "affine_grid"), "F.interpolate"),
    },
    "the models here are encoders": {
        **dict.fromkeys(
            ("Transformer", "TransformerDecoder", "TransformerDecoderLayer"),
            "nn.TransformerEncoder, or nn.MultiheadAttention for cross-attention",
        ),
        **dict.fromkeys(("CTCLoss", "ctc_loss"), "nn.CrossEntropyLoss, on aligned targets"),
    },
    "floating-point tensors are float32 by default": {
        **dict.fromkeys(
            ("get_default_dtype", "set_default_dtype", "set_default_tensor_type", "set_default_device"),
            "dtype= and device= in each call, or model.to(...)",
        ),
        **dict.fromkeys(
            ("FloatTensor", "DoubleTensor", "HalfTensor", "LongTensor", "IntTensor", "BoolTensor", "ByteTensor"),
            "minigrad.tensor(data, dtype=minigrad.float32)",
        ),
    },
    "an in-place method keeps the shape and the history of a tensor": {
        **dict.fromkeys(
            ("t_", "transpose_", "squeeze_", "unsqueeze_", "resize_", "detach_"),
            "the method without the underscore, as in x = x.squeeze()",
        ),
    },
    "optimizers here are SGD, Adam, AdamW, RMSprop, Adagrad and Muon": {
        **dict.fromkeys(
            ("Adadelta", "Adamax", "NAdam", "RAdam", "Rprop", "ASGD", "LBFGS"), "optim.Adam or optim.AdamW"
        ),
    },
    "state of the process is set elsewhere": {
        **dict.fromkeys(("set_num_threads", "get_num_threads"), "the variable OMP_NUM_THREADS, before Python starts"),
        **dict.fromkeys(
            ("get_rng_state", "set_rng_state", "initial_seed"), "minigrad.Generator(seed), minigrad.use_generator"
        ),
        "set_printoptions": "np.set_printoptions",
        "set_detect_anomaly": "with minigrad.detect_anomaly(): ...",
        "backends": "minigrad.cublas.allow_tf32(True), for matrix products in TF32",
        "gradcheck": "minigrad.testing.gradcheck",
        "amp": "minigrad.autocast and minigrad.optim.GradScaler",
    },
    "special functions are out of scope": {
        **dict.fromkeys(
            ("special", "lgamma", "digamma", "erfinv", "i0"), "scipy.special on x.numpy(), which is not recorded"
        ),
    },
    "memory is managed by NumPy and CuPy": {
        **dict.fromkeys(("pin_memory", "share_memory_", "record_stream"), "the Tensor itself"),
    },
}  # fmt: skip

NAMES = {name: (reason, instead) for reason, names in ABSENT.items() for name, instead in names.items()}


def refuse(owner: Any, shown: str, name: str) -> NoReturn:
    """Raise AttributeError for the attribute `name` of `owner`, an object that is called `shown` in the message."""
    message = f"{shown} has no attribute {name!r}"
    if name in NAMES:
        reason, instead = NAMES[name]
        message += f": {reason}. Use {instead}"
    raise AttributeError(message, name=name, obj=owner)


def module_getattr(module: str) -> Callable[[str], NoReturn]:
    """The `__getattr__` of the module of this name."""
    return lambda name: refuse(sys.modules[module], f"module {module!r}", name)


class Absent:
    """An attribute of a class that raises the AttributeError of `refuse`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> NoReturn:
        refuse(owner if instance is None else instance, f"a {owner.__name__}", self.name)
