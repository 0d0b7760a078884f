"""Layers and losses against PyTorch in float64: outputs, and gradients of inputs and parameters."""

import copy

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, nn

torch = pytest.importorskip("torch")

rng = np.random.default_rng(0)
ROWS, IMAGES, SIGNALS = rng.standard_normal((3, 4)), rng.standard_normal((2, 4, 5, 6)), rng.standard_normal((2, 3, 7))
CASES = {
    "flatten": (lambda nn: nn.Flatten(), IMAGES),
    "flatten 1 2": (lambda nn: nn.Flatten(1, 2), IMAGES),
    "unflatten": (lambda nn: nn.Unflatten(1, (2, -1)), IMAGES),
    "sigmoid": (lambda nn: nn.Sigmoid(), ROWS),
    "tanh": (lambda nn: nn.Tanh(), ROWS),
    "silu": (lambda nn: nn.SiLU(), ROWS),
    "relu": (lambda nn: nn.ReLU(), ROWS),
    "gelu": (lambda nn: nn.GELU("tanh"), ROWS),
    "softmax": (lambda nn: nn.Softmax(dim=1), IMAGES),
    "log softmax": (lambda nn: nn.LogSoftmax(dim=-1), IMAGES),
    "max pool": (lambda nn: nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGES),
    "avg pool": (lambda nn: nn.AvgPool2d(3, 2, 1, True, False), IMAGES),
    "adaptive pool": (lambda nn: nn.AdaptiveAvgPool2d((None, 4)), IMAGES),
    "batch norm rows": (lambda nn: nn.BatchNorm1d(4), ROWS),
    "batch norm signals": (lambda nn: nn.BatchNorm1d(3, eps=1e-3), SIGNALS),
    "batch norm evaluated": (lambda nn: nn.BatchNorm1d(3).eval(), SIGNALS),
    "batch norm untracked": (lambda nn: nn.BatchNorm2d(4, track_running_stats=False).eval(), IMAGES),
    "layer norm without bias": (lambda nn: nn.LayerNorm(6, bias=False), IMAGES),
    "upsample": (lambda nn: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), IMAGES),
    "upsample to size": (lambda nn: nn.Upsample((7, 3)), IMAGES),
    "dropout2d evaluated": (lambda nn: nn.Dropout2d(0.7).eval(), IMAGES),
    "conv reflect": (lambda nn: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect"), IMAGES),
    "conv circular": (lambda nn: nn.Conv2d(4, 6, (3, 2), 2, 1, padding_mode="circular", groups=2), IMAGES),
    "conv replicate same": (
        lambda nn: nn.Conv2d(4, 2, (2, 3), padding="same", dilation=(1, 2), padding_mode="replicate"),
        IMAGES,
    ),
    "conv 1d": (lambda nn: nn.Conv1d(3, 6, 3, stride=2, padding=1), SIGNALS),
    "conv 1d reflect": (lambda nn: nn.Conv1d(3, 6, (3,), padding=2, groups=3, padding_mode="reflect"), SIGNALS),
    "conv 1d same": (lambda nn: nn.Conv1d(3, 2, 4, padding="same", padding_mode="circular", bias=False), SIGNALS),
    "conv transpose": (lambda nn: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, dilation=(1, 2)), IMAGES),
    "unfold": (lambda nn: nn.Unfold((2, 3), padding=1, stride=2), IMAGES),
    "fold": (lambda nn: nn.Fold((4, 5), (2, 2)), rng.standard_normal((2, 8, 12))),
    "leaky relu": (lambda nn: nn.LeakyReLU(0.2), ROWS),
    "elu": (lambda nn: nn.ELU(0.5), ROWS),
    "softplus": (lambda nn: nn.Softplus(2, 1), ROWS),
    "hardswish": (lambda nn: nn.Hardswish(), ROWS * 4),
    "conv valid": (lambda nn: nn.Conv2d(4, 2, 3, padding="valid", padding_mode="reflect"), IMAGES),
}  # fmt: skip


def same_weights(ours, theirs):
    """Both modules in float64, with the weights of a random state_dict of PyTorch."""
    theirs.double()
    ours.double()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.from_numpy(np.random.default_rng(p.numel()).standard_normal(tuple(p.shape)) * 0.5))
    found = ours.load_state_dict({name: x.numpy() for name, x in theirs.state_dict().items()}, strict=False)
    assert not found.missing_keys and all(name.endswith("num_batches_tracked") for name in found.unexpected_keys)
    return ours, theirs


def gradients_agree(ours, theirs, outputs, expected, inputs=(), rtol=1e-12):
    """Random gradients of the outputs give the same gradients of parameters and inputs."""
    for y, z in zip(outputs, expected, strict=True):
        assert y.shape == tuple(z.shape) and str(z.dtype) == f"torch.{y.dtype}"
        np.testing.assert_allclose(y.numpy(), z.detach().numpy(), rtol=rtol, atol=rtol)
    grads = [np.random.default_rng(1).standard_normal(y.shape) for y in outputs]
    sum((y * Tensor(g)).sum() for y, g in zip(outputs, grads, strict=True)).backward()
    sum((z * torch.from_numpy(g)).sum() for z, g in zip(expected, grads, strict=True)).backward()
    pairs = [*zip(ours.parameters(), theirs.parameters(), strict=True), *inputs]
    for p, q in pairs:
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=10 * rtol, atol=10 * rtol)


@pytest.mark.parametrize(("make", "values"), CASES.values(), ids=CASES)
def test_layer_equals_pytorch(make, values):
    ours, theirs = same_weights(make(nn), make(torch.nn))
    x, z = Tensor(values.copy(), requires_grad=True), torch.tensor(values, requires_grad=True)
    gradients_agree(ours, theirs, [ours(x)], [theirs(z)], [(x, z)])


@pytest.mark.parametrize("padding_idx", [None, 0, -1])
def test_embedding_equals_pytorch(padding_idx):
    ours, theirs = same_weights(nn.Embedding(6, 3, padding_idx), torch.nn.Embedding(6, 3, padding_idx))
    index = np.array([[1, 0, 3], [3, 5, 0]])
    gradients_agree(ours, theirs, [ours(Tensor(index))], [theirs(torch.tensor(index))])
    if padding_idx is not None:
        assert not nn.Embedding(6, 3, padding_idx).weight[padding_idx].numpy().any()


def test_pretrained_embedding_is_frozen():
    table = Tensor(rng.standard_normal((5, 2)))
    layer = nn.Embedding.from_pretrained(table)
    assert not layer.weight.requires_grad and layer(Tensor([4])).tolist() == table[4:].tolist()
    assert nn.Embedding.from_pretrained(table, freeze=False).weight.requires_grad


LOSSES = {
    "cross entropy": lambda nn, of: nn.CrossEntropyLoss(of(np.array([1.0, 2, 0.5, 1])), label_smoothing=0.1),
    "nll": lambda nn, of: nn.NLLLoss(of(np.array([1.0, 2, 0.5, 1])), ignore_index=1),
    "nll sum": lambda nn, of: nn.NLLLoss(reduction="sum"),
    "cross entropy ignored": lambda nn, of: nn.CrossEntropyLoss(ignore_index=0, reduction="sum"),
}
TARGETS = np.array([1, 0, 3])


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_loss_of_classes_equals_pytorch(make):
    ours, theirs = make(nn, Tensor), make(torch.nn, torch.tensor)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x, z = Tensor(ROWS.copy(), requires_grad=True), torch.tensor(ROWS, requires_grad=True)
    gradients_agree(ours, theirs, [ours(x, Tensor(TARGETS))], [theirs(z, torch.tensor(TARGETS))], [(x, z)])


VALUE_LOSSES = {
    "mse": lambda nn, of, **options: nn.MSELoss(**options),
    "l1": lambda nn, of, **options: nn.L1Loss(**options),
    "smooth l1": lambda nn, of, **options: nn.SmoothL1Loss(beta=0.5, **options),
    "huber": lambda nn, of, **options: nn.HuberLoss(delta=0.5, **options),
    "bce": lambda nn, of, **options: nn.BCELoss(of(np.array([1.0, 2, 0.5, 1])), **options),
    "bce with logits": lambda nn, of, **options: nn.BCEWithLogitsLoss(
        pos_weight=of(np.array([1.0, 2, 3, 1])), **options
    ),
    "kl": lambda nn, of, **options: nn.KLDivLoss(**options),
    "kl of logarithms": lambda nn, of, **options: nn.KLDivLoss(log_target=True, **options),
}


@pytest.mark.filterwarnings("ignore:reduction")  # PyTorch recommends "batchmean" for KLDivLoss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("make", VALUE_LOSSES.values(), ids=VALUE_LOSSES)
def test_loss_of_values_equals_pytorch(make, reduction):
    ours, theirs = make(nn, Tensor, reduction=reduction), make(torch.nn, torch.tensor, reduction=reduction)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    values = 1 / (1 + np.exp(-ROWS)) if "BCELoss" in repr(ours) else ROWS
    x, z = Tensor(values.copy(), requires_grad=True), torch.tensor(values, requires_grad=True)
    target = np.random.default_rng(5).uniform(0.1, 0.9, ROWS.shape)
    gradients_agree(ours, theirs, [ours(x, Tensor(target))], [theirs(z, torch.tensor(target))], [(x, z)])


def test_cosine_similarity_equals_pytorch():
    pairs = [both(ROWS), both(np.roll(ROWS, 1))]
    actual, expected = (
        side.CosineSimilarity(dim=0)(*x) for side, x in zip((nn, torch.nn), zip(*pairs, strict=True), strict=True)
    )
    gradients_agree(nn.Module(), torch.nn.Module(), [actual], [expected], pairs)


def test_hardsigmoid_equals_pytorch():
    """PyTorch multiplies the gradient by 1/6 rounded to float32."""
    (x, z), grad = both(ROWS * 4), np.random.default_rng(1).standard_normal(ROWS.shape)
    nn.Hardsigmoid()(x).backward(Tensor(grad)), torch.nn.Hardsigmoid()(z).backward(torch.tensor(grad))
    np.testing.assert_allclose(nn.Hardsigmoid()(x).numpy(), torch.nn.Hardsigmoid()(z).detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(x.grad.numpy(), z.grad.numpy(), rtol=1e-7)


def test_dropout2d_drops_channels():
    minigrad.manual_seed(0)
    y = nn.Dropout2d(0.5)(minigrad.ones(50, 20, 3, 3)).numpy()
    assert set(np.unique(y)) == {0, 2} and (y == y[:, :, :1, :1]).all() and 400 < y[:, :, 0, 0].sum() / 2 < 600


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Softmax(), "give the axis"),
        (lambda: nn.Conv2d(1, 1, 1, padding_mode="same"), "padding_mode must be one of"),
        (lambda: nn.Embedding(3, 2, padding_idx=3), "padding_idx must be below"),
        (lambda: nn.BatchNorm1d(3)(minigrad.ones(2, 3, 4, 5)), r"\(N, C\) or \(N, C, L\)"),
        (lambda: nn.MultiheadAttention(7, 2), "must divide embed_dim"),
        (lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), "not supported"),
    ],
)
def test_what_does_not_exist_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_dtype_of_new_parameters():
    layers = [
        nn.Linear(2, 3, dtype="float64"), nn.Conv2d(2, 3, 1, dtype=np.float64), nn.LayerNorm(2, dtype="float64"),
        nn.BatchNorm2d(2, dtype="float64"), nn.Embedding(2, 3, dtype="float64"),
        nn.TransformerEncoderLayer(4, 2, 8, dtype="float64"),
    ]  # fmt: skip
    assert {p.dtype.name for layer in layers for p in (*layer.parameters(), *layer.buffers())} == {"float64"}


# Attention ------------------------------------------------------------------------------------------------------------

N, L, S, E, H = 2, 5, 3, 8, 2
TOKENS = rng.standard_normal((N, L, E))
KEYS, VALUES = rng.standard_normal((N, S, 6)), rng.standard_normal((N, S, 4))
CAUSAL = np.triu(np.ones((L, L), bool), 1)
PADDING = np.array([[False] * 5, [False] * 3 + [True] * 2])
OPTIONS = {
    "plain": {},
    "without weights": {"need_weights": False},
    "weights of heads": {"average_attn_weights": False},
    "padding": {"key_padding_mask": PADDING},
    "causal": {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
    "both masks": {"attn_mask": CAUSAL, "key_padding_mask": PADDING},
    "both masks without weights": {"attn_mask": CAUSAL, "key_padding_mask": PADDING, "need_weights": False},
    "added masks": {"attn_mask": rng.standard_normal((L, L)), "key_padding_mask": rng.standard_normal((N, L))},
    "a mask for each head": {"attn_mask": rng.standard_normal((N * H, L, L)), "average_attn_weights": False},
}


def both(values):
    """A Tensor of minigrad and a tensor of PyTorch that require gradients."""
    return Tensor(values.copy(), requires_grad=True), torch.tensor(values, requires_grad=True)


def options_of(options, make):
    return {name: make(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("batch_first", [True, False])
def test_self_attention_equals_pytorch(options, batch_first):
    ours, theirs = (library.MultiheadAttention(E, H, batch_first=batch_first) for library in (nn, torch.nn))
    same_weights(ours, theirs)
    x, z = both(TOKENS if batch_first else TOKENS.transpose(1, 0, 2).copy())
    y, weights = ours(x, x, x, **options_of(options, Tensor))
    y_, weights_ = theirs(z, z, z, **options_of(options, torch.tensor))
    assert (weights is None) == (weights_ is None)
    outputs, expected = ([y], [y_]) if weights is None else ([y, weights], [y_, weights_])
    gradients_agree(ours, theirs, outputs, expected, [(x, z)])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 4}])
def test_cross_attention_equals_pytorch(sizes, bias):
    ours, theirs = (
        library.MultiheadAttention(E, H, 0.0, bias, batch_first=True, **sizes) for library in (nn, torch.nn)
    )
    assert list(ours.state_dict()) == list(theirs.state_dict())
    same_weights(ours, theirs)
    keys, values = (KEYS, VALUES) if sizes else (TOKENS[:, :S] * 2, TOKENS[:, :S] + 1)
    pairs = [both(TOKENS), both(keys), both(values)]
    outputs, expected = ours(*(x for x, _ in pairs)), theirs(*(z for _, z in pairs))
    gradients_agree(ours, theirs, outputs, expected, pairs)
    single = [[x.detach()[0] for x in side] for side in zip(*pairs, strict=True)]
    for y, z in zip(ours(*single[0]), theirs(*single[1]), strict=True):
        np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"is_causal": True}, RuntimeError),
        ({"attn_mask": np.ones((L, L + 1), bool)}, ValueError),
        ({"key_padding_mask": np.ones((N, L + 1), bool)}, ValueError),
        ({"attn_mask": np.ones((L, L), int)}, TypeError),
    ],
)
def test_attention_refuses_masks(options, error):
    x = Tensor(TOKENS)
    with pytest.raises(error):
        nn.MultiheadAttention(E, H, batch_first=True).double()(x, x, x, **options_of(options, Tensor))


def test_attention_drops_weights_in_training():
    layer, x = nn.MultiheadAttention(E, H, dropout=0.5, batch_first=True).double(), Tensor(TOKENS)
    _, weights = layer(x, x, x, average_attn_weights=False)
    assert 0.2 < (weights.numpy() == 0).mean() < 0.8
    _, weights = layer.eval()(x, x, x, average_attn_weights=False)
    assert (weights.numpy() > 0).all()


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu", "function"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_encoder_equals_pytorch(norm_first, activation, bias, masked):
    def encoder(nn, tanh):
        options = {"activation": tanh if activation == "function" else activation, "norm_first": norm_first}
        layer = nn.TransformerEncoderLayer(E, H, 16, 0.0, bias=bias, batch_first=True, layer_norm_eps=1e-4, **options)
        return nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(E), enable_nested_tensor=False)

    ours, theirs = encoder(nn, Tensor.tanh), encoder(torch.nn, torch.tanh)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    same_weights(ours, theirs)
    masks = {"mask": CAUSAL, "src_key_padding_mask": PADDING} if masked else {}
    x, z = both(TOKENS)
    actual, expected = ours(x, **options_of(masks, Tensor)), theirs(z, **options_of(masks, torch.tensor))
    gradients_agree(ours, theirs, [actual], [expected], [(x, z)], rtol=3e-12)


def test_encoder_layers_are_copies():
    layer = nn.TransformerEncoderLayer(E, H, 16)
    encoder = nn.TransformerEncoder(layer, 2)
    assert len({id(p) for p in (*layer.parameters(), *encoder.parameters())}) == 3 * len(list(layer.parameters()))
    again = copy.deepcopy(encoder).eval()
    x = Tensor(np.float32(TOKENS))
    np.testing.assert_array_equal(again(x).numpy(), encoder.eval()(x).numpy())
