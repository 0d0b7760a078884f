"""PyTorch lines on the arrays NAMES, for `test_lines.py` and `tests/ops/test_names_on_a_device.py`."""

import re

import numpy as np

rng = np.random.default_rng(0)


def uniform(*shape, low=-2.0, high=2.0):
    return rng.uniform(low, high, shape).astype(np.float32)


NAMES = {
    "a": uniform(6), "p": uniform(6, low=0.2, high=3), "m": uniform(3, 4), "n": uniform(3, 4), "v": uniform(4),
    "square": uniform(3, 3), "A": uniform(2, 3, 4), "B": uniform(2, 4, 5), "C": uniform(2, 3, 5),
    "h": np.float16(uniform(6)), "zeros": np.float32([2, 0, 3, 0, 5]), "ties": np.float32([[1, 3, 3], [3, 0, 1]]),
    "k": np.float32([-3, -0.0, 0, 3]), "special": np.float32([1, np.nan, np.inf, -np.inf, 0, np.nan]),
    "u": uniform(3, 4, low=0.05, high=0.95), "i": np.array([-5, 3, 7, 2, -1, 8]), "j": np.array([0, 1, 0, 2, 3, 0]),
    "equal": np.array([[3, 1, 3, 1], [2, 2, 0, 2]]), "b": np.array([True, False, True]),
    "c": np.array([True, True, False]), "bytes": np.uint8([1, 0, 3]), "at": np.array([[0, 1, 2, 0], [2, 0, 1, 1]]),
    "ids": np.array([[1, 0, 3], [3, 5, 0]]), "rows": uniform(6, 3), "classes": np.array([1, 0, 3]),
    "pixels": rng.integers(0, 4, (2, 5, 6)), "signal": uniform(2, 4, 9), "images": uniform(2, 4, 5, 6),
    "w1": uniform(6, 4, 3), "b1": uniform(6), "wt": uniform(4, 3, 3, 2), "bt": uniform(3), "wg": uniform(4, 2, 2, 2),
}  # fmt: skip

LINES = re.split(
    r"; |\n",
    """
torch.sin(a); a.cos(); i.cos(); torch.sin(b); torch.rsqrt(p); i.rsqrt(); torch.log1p(p); torch.expm1(a); torch.expm1(i)
torch.square(a); i.square(); b.square(); special.sin(); torch.rsqrt(zeros); torch.max(a); a.max(); i.max()
torch.max(m, 1); torch.max(m, dim=1); m.max(0); m.max(dim=-1, keepdim=True); b.max(); m.max(1).values; m.max(1).indices
m.max(1)[1]; torch.max(m, axis=1); torch.max(m, n); m.max(n); torch.min(m); torch.min(m, 1); m.min(dim=0, keepdims=True)
m.min(0).values; torch.min(m, n); ties.max(); ties.max(0).values; special.max(0); special.min(0); equal.max(0); b.max(0)
a[0].max(0); a[0].min(-1, keepdim=True); torch.argmin(m); m.argmin(1); m.argmin(dim=1, keepdim=True)
torch.argmax(m, axis=1); special.argmin(); equal.argmin(); torch.sort(m); m.sort(dim=0); m.sort(descending=True)
torch.sort(m, 0, True); special.sort(stable=True); b.sort(); torch.sort(equal, stable=True)
torch.sort(equal, stable=True, descending=True); torch.sort(m).indices; a[0].sort()
special.sort(stable=True, descending=True); m.argsort(); torch.argsort(m, dim=0, descending=True)
ties.sort(stable=True); torch.argsort(equal, stable=True); torch.topk(a, 3); m.topk(2); m.topk(2, dim=0)
m.topk(2, largest=False); a[0].topk(1); torch.topk(m, k=2, dim=1, largest=True, sorted=True); m.topk(2).indices
m.topk(0); special[:4].topk(2); torch.cumprod(a, dim=0); m.cumprod(1); i.cumprod(0); b.cumprod(0); zeros.cumprod(0)
a[0].cumprod(0); torch.cumsum(b, 0); torch.cumsum(m, axis=1); torch.scatter(m, 1, at, 2.0)
m.scatter(1, at[:, :3], n[:2, :3]); m.scatter(1, at, 5); i.scatter(0, j, 2); m.scatter_add(1, at, n[:2])
torch.scatter_add(m, 0, at, n[:2]); i.scatter_add(0, j, i); a[0].scatter(0, j[0], 2.5); a.scatter(0, j[:1], p[0])
bytes.scatter_add(0, j[:3], bytes); torch.floor(a); a.ceil(); torch.round(a); torch.round(a * 10, decimals=1)
(a * 100).round(decimals=-1); a.sign(); k.sign(); a.trunc(); special.sign(); torch.floor(i); i.round(); i.sign()
b.sign(); special.floor(); special.round(); a.detach() // 2; i // 2; i // -2; 7 // p.detach(); a.detach() // p.detach()
i // 2.5; torch.floor_divide(i, 3); bytes // 2; k.detach() // 0; special.detach() // 2; i // special[1].detach()
bytes // 300; k.detach() // special[2:4].detach()[0]; a % 2; i % 3; i % -3; a % -1.5; a % p; torch.remainder(a, p)
a.fmod(0.7); torch.fmod(a, p); i.fmod(3); i.fmod(-3); a.fmod(-1.5); bytes.fmod(2); k.fmod(2); special.fmod(2)
7 % i; i.fmod(2.5); i % 2.5; bytes % -3; k % 0; special % 2; k % -2; i % i; torch.lerp(a, p, 0.3); a.lerp(p, 0.7)
torch.lerp(a, p, torch.sigmoid(a)); a.lerp(p, 1); m.lerp(v, 0.5); a.norm(); torch.norm(m); m.norm(dim=1); m.norm(p=1)
m.norm(p=1, dim=1); m.norm(2, dim=-1, keepdim=True); (a * 0).norm(); torch.norm(m, p=float("inf"))
torch.norm(m, p=3, dim=(0, 1)); torch.norm(m, p="fro"); m.norm(p=-math.inf, dim=0); m.norm(p=0.5); zeros.norm(1)
zeros.norm(0.5); m.norm(p=0).detach(); ties.norm(math.inf); m.norm(dtype=torch.float64); F.leaky_relu(a)
F.leaky_relu(a, 0.2); F.leaky_relu(k, negative_slope=0.1); F.leaky_relu(special); F.elu(a); F.elu(k, alpha=0.5)
F.elu(a, alpha=0.5); F.elu(special); F.softplus(a); F.softplus(a, beta=2, threshold=1); F.softplus(k * 30); F.silu(a)
F.hardswish(a * 3); F.hardswish(k); F.hardswish(special); F.hardsigmoid(a * 3); F.hardsigmoid(k); F.hardsigmoid(special)
F.sigmoid(a); F.tanh(a); a.softmax(0); m.softmax(dim=1); m.log_softmax(dim=-1); torch.softmax(m, dim=1); m.relu()
k.relu(); torch.log_softmax(m, 1); torch.relu(m); torch.softmax(m, 1, dtype=torch.float64); i.relu()
F.log_softmax(i, 0, dtype=torch.float32); F.conv1d(signal, w1); F.conv1d(signal, w1, b1, stride=2, padding=1)
F.conv1d(signal, w1, padding="same"); F.conv1d(signal, w1, dilation=2); F.conv1d(signal[0], w1[:, :2], groups=2)
F.conv_transpose2d(images, wt); F.conv_transpose2d(images, wt, bt, stride=2, padding=1, output_padding=1)
F.conv_transpose2d(images, wt, dilation=2); F.conv_transpose2d(images, wg, None, 2, 0, 0, 2)
F.conv_transpose2d(images[0], wt); F.unfold(images, 3); F.unfold(images, kernel_size=(2, 3), padding=1, stride=2)
F.unfold(images[0], 2, dilation=2); F.fold(F.unfold(images, 3), (5, 6), 3)
F.fold(F.unfold(images, 2, stride=2), output_size=(5, 6), kernel_size=2, stride=2); F.embedding(ids, rows)
F.embedding(ids, rows, padding_idx=0); F.embedding(ids, rows, padding_idx=-1); F.one_hot(ids)
F.one_hot(ids, num_classes=7); F.one_hot(ids, 6); F.cosine_similarity(m, n); F.cosine_similarity(m, n, dim=0)
F.cosine_similarity(m, n, dim=-1, eps=1e-6); torch.cosine_similarity(m, v); F.cosine_similarity(m * 1e-9, n)
F.cosine_similarity(m * 0, n); F.normalize(m, p=1); F.normalize(m, 3.0, 0); F.nll_loss(F.log_softmax(m, 1), classes)
F.nll_loss(F.log_softmax(m, 1), classes, weight=v.detach()); F.nll_loss(F.log_softmax(m, 1), classes, ignore_index=1)
F.nll_loss(m, classes, reduction="none"); F.nll_loss(m[0], i[3]); F.nll_loss(F.log_softmax(images, dim=1), pixels)
F.nll_loss(images, pixels, reduction="sum", ignore_index=2); F.nll_loss(m, classes, ignore_index=0)
F.nll_loss(m[:1], j[:1], ignore_index=0); F.l1_loss(m, n); F.l1_loss(m, n, reduction="sum"); F.l1_loss(zeros, zeros * 0)
F.mse_loss(m, n, reduction="none"); F.smooth_l1_loss(m, n); F.smooth_l1_loss(m, n, beta=0.5)
F.smooth_l1_loss(m, n, reduction="none"); F.smooth_l1_loss(m, n, beta=0.0); F.huber_loss(m, n)
F.huber_loss(m, n, delta=0.3); F.huber_loss(m, n, reduction="sum"); F.binary_cross_entropy_with_logits(m, u)
F.binary_cross_entropy_with_logits(m * 100, u); F.binary_cross_entropy_with_logits(m, u, pos_weight=v.detach())
F.binary_cross_entropy_with_logits(m, u, weight=u.detach(), reduction="sum")
F.binary_cross_entropy(torch.sigmoid(m), u); F.binary_cross_entropy(torch.sigmoid(m), u, weight=v.detach())
F.binary_cross_entropy((zeros > 1).float(), zeros.detach() / 5); F.kl_div(F.log_softmax(m, dim=1), u)
F.kl_div(F.log_softmax(m, dim=1), u, reduction="batchmean")
F.kl_div(F.log_softmax(m, 1), F.log_softmax(n, 1), log_target=True, reduction="sum"); F.kl_div(m, (u > 0.5).float())
torch.logical_and(b, c); torch.logical_or(i, j); b.logical_not(); torch.logical_not(i); torch.logical_xor(a, i)
b.logical_and(c); special.logical_or(special); torch.isnan(special); torch.isinf(special); torch.isfinite(special)
special.isnan().any(); i.isnan(); i.isinf(); b.isfinite(); b.any(); b.all(); torch.any(m > 0, dim=1); special.all()
torch.all(m > -1, 0, keepdim=True); m.any(); bytes.all(); bytes.any(0); (m > 0).all(axis=1); i.any(); torch.any(b, ())
torch.all(at, (0, 1)); m[:0].all(); m[:0].any(0); torch.nonzero(b); i.nonzero(); m.nonzero()
torch.nonzero(b, as_tuple=True); a[0].nonzero(); a[0].nonzero(as_tuple=True); torch.allclose(m, m + 1e-9)
torch.allclose(m, n); torch.allclose(special, special, equal_nan=True); m.allclose(n, 1, 10); torch.equal(m, m)
torch.equal(m, n); torch.equal(m, v); torch.equal(special, special); torch.isclose(m, n, atol=1)
i.isclose(i + 1, atol=1); special.isclose(special, equal_nan=True); torch.bmm(A, B); A.bmm(B); torch.mm(m, m.T)
m.mm(m.T); torch.addmm(square, m, m.T); torch.addmm(a[0], m, n.T); torch.addmm(square, m, m.T, beta=0.5, alpha=2)
torch.baddbmm(C, A, B); torch.baddbmm(C, A, B, beta=2, alpha=0.5); torch.addmm(special[1].detach(), m, m.T, beta=0)
torch.outer(a, p); a.outer(p); torch.dot(a, p); i.dot(i); torch.mv(m, v); m.mv(v); i.outer(a); torch.sum(b)
torch.sum(m, axis=1, keepdims=True); m.mean(axis=0); torch.var(m, axis=1); b.sum(0); m.amax(axis=0)
torch.stack([m, n], axis=1); torch.cat([m, n], axis=1); m.squeeze(axis=0); m.unsqueeze(axis=0)
torch.logsumexp(m, axis=1); h.sin(); h.softmax(0); h.norm(); torch.max(h, 0); h.sort(); h.cumprod(0); F.elu(h)
F.l1_loss(h, h * 2); h % 2; h.round(); torch.div(i, 2, rounding_mode="trunc"); torch.div(a, 0.5, rounding_mode="floor")
i.div(-2, rounding_mode="floor"); torch.add(a, p, alpha=2); i.sub(j, alpha=3); m.sum(dtype=torch.float64)
i.mean(dtype=torch.float32); b.cumsum(0, dtype=torch.float64); m.var(False); m.var(0, False)
torch.std(m, dim=1, unbiased=False, keepdim=True); m.var(correction=0); a.clip(-1, 1); torch.clamp(m, u - 1, u)
m.clamp(min=n); special.detach().clamp(min=special.flip(0).detach()); a.clamp(max=special[1].detach())
a[0].gather(0, j * 0)
a.gather(0, j[0]); b**2; a.reciprocal(); a.frac(); a.exp2(); u.logit(); u.logit(0.2); a.deg2rad(); i.rad2deg()
a.clamp_min(0); a.clamp_max(1); a.addcmul(a, p, value=0.5); a.addcdiv(a, p, value=2); m.where(m > 0, n); i.log2()
special.detach().nan_to_num(); special.nan_to_num(7.0, 2.0); special.nansum(); special[:2].nanmean(); i.atan2(j)
torch.var_mean(m, 1); torch.std_mean(m); torch.var_mean(m, 0, unbiased=False, keepdim=True); m.count_nonzero(0)
square.trace(); a.diff()
m.diff(n=2, dim=1); m.diff(dim=0); m.dist(n); m.dist(n, 1); a.kthvalue(2); m.kthvalue(3, 0, True); m.median()
m.median(1); m.median(0, keepdim=True); special.detach().median(); m.quantile(0.3); m.quantile(0.5, 1, True)
m.quantile(u[0].detach(), dim=0); special.detach().quantile(0.5); m.quantile(u[0].detach(), 1, keepdim=True)
m.quantile(0.5, keepdim=True); equal.unique(); i.unique(); torch.unique(j, return_inverse=True, return_counts=True)
equal.unique(dim=0, return_inverse=True); equal.unique(return_inverse=True); j.bincount(); j.bincount(minlength=8)
j.bincount(a.detach()); torch.histc(a.detach(), 4, -2, 2); torch.histc(m.detach(), bins=5); torch.cummax(m, 1)
ties.cummax(1); m.cummin(0); i.cummax(0); special.detach().cummax(0); special.detach().cummin(0); m.argwhere()
m.masked_select(m > 0); m.masked_select(v > 0); m.take(j); m.take(at); square.diag(); square.diag(1); v.diag(-1)
square.diagonal(-1); m.diagonal(2); A.diagonal(dim1=-2, dim2=-1); m.diag_embed(); v.diag_embed(2); v.diag_embed(-1)
a.unfold(0, 3, 1); A.unfold(2, 2, 2); A.unfold(-2, 3, 1); m.ravel(); torch.flip(m, dims=(0,)); m.fliplr(); m.flipud()
m.repeat_interleave(2); m.repeat_interleave(2, dim=1); m.repeat_interleave(j[:3], dim=0); m.tile(2); m.tile((2, 1, 3))
torch.tile(m, dims=(2, 2)); v.broadcast_to((3, 4)); a.tensor_split(4); m.tensor_split([1, 3], dim=1)
m.take_along_dim(at[:1], 1); m.take_along_dim(j); torch.permute(A, dims=(2, 0, 1)); m.index_add(0, j[:2], n[:2])
m.index_add(1, j, m[:, j], alpha=2); m.index_copy(1, j[3:], n[:, :3]); m.index_fill(1, j[:2], -1)
m.index_fill(0, j[1:2], v[0]); torch.cross(square, square.flip(0), dim=1); square.cross(square.T, 0)
torch.addmv(v[:3], m, v, beta=2, alpha=0.5); i << 1 + (i < 0).long(); i >> 1; i.eq(3); a.ne(p); a.lt(p); a.le(0)
a.gt(p); a.ge(0); torch.bitwise_and(i, 6); torch.bitwise_not(b); torch.bitwise_or(i, j); torch.bitwise_xor(b, c)
torch.multiply(a, p); torch.subtract(a, p, alpha=2); torch.divide(a, p); torch.true_divide(i, 2); torch.negative(a)
torch.pow(2, a); torch.pow(a, 2); torch.where(b); torch.aminmax(m.detach()); torch.aminmax(m, dim=1, keepdim=True)
torch.searchsorted(p.detach().sort().values, u); torch.bucketize(i, j.sort().values, right=True); torch.isin(i, j)
torch.cdist(m, n); torch.cdist(A, A, p=1); torch.logaddexp(m, v); torch.tensordot(A, B, dims=([2], [1]))
torch.tensordot(m, v, dims=1); torch.inner(m, n); torch.inner(a, p); torch.kron(square, m); torch.hstack((a, p))
torch.hstack((m, n)); torch.vstack((v, m)); torch.column_stack((a, p)); torch.concat([m, n], dim=1); torch.pow(a, i)
torch.broadcast_tensors(m, v); torch.cartesian_prod(a, p, v); torch.atleast_1d(a[0]); torch.atleast_2d(a)
F.relu6(a * 4); F.hardtanh(a, -0.5, 0.7); F.threshold(a, 0.1, 20); F.prelu(m, v); F.prelu(a, v[:1]); F.hardshrink(a)
F.softshrink(a, 0.3); F.tanhshrink(a); F.softsign(a); F.mish(a); F.logsigmoid(a * 9); F.glu(m); F.glu(A, 2)
F.selu(a); F.celu(a, 0.7); F.softmin(m, dim=1); F.margin_ranking_loss(a, p, (i > 0) * 2 - 1, margin=0.5)
F.hinge_embedding_loss(p, (i > 0) * 2 - 1); F.cosine_embedding_loss(m, n, j[3:5].new_tensor([1, -1, 1]), margin=0.1)
F.triplet_margin_loss(m, n, m.flip(0)); F.triplet_margin_loss(m, n, n.flip(0), margin=2, swap=True, reduction="sum")
F.soft_margin_loss(a, (i > 0) * 2 - 1); F.multilabel_soft_margin_loss(m, u); F.poisson_nll_loss(a, p)
F.multilabel_soft_margin_loss(m, u, v.detach(), reduction="none"); F.poisson_nll_loss(p, u[0, 0], log_input=False)
F.gaussian_nll_loss(a, p, p * 2, full=True); F.gaussian_nll_loss(m, n, u, eps=0.5, reduction="none")
F.max_pool1d(signal, 2); F.max_pool1d(signal, 3, 2, 1); F.avg_pool1d(signal, 3, 2, 1); F.avg_pool1d(signal[0], 2)
F.adaptive_avg_pool1d(signal, 4); F.pixel_shuffle(images, 2); F.pixel_unshuffle(images[..., :4, :], 2)
torch.pixel_shuffle(images[0], 2); F.channel_shuffle(images.detach(), 2); F.pairwise_distance(m, n)
F.pairwise_distance(m, v, p=1, keepdim=True); F.rms_norm(m, (4,)); F.rms_norm(A, (3, 4), m, 1e-3)
F.instance_norm(images, weight=v, bias=v); F.interpolate(signal, size=5, mode="linear"); F.dropout2d(images, 0.5, False)
F.interpolate(signal, scale_factor=2); F.interpolate(images, size=(3, 4), mode="area"); F.interpolate(signal, 4)
F.interpolate(signal, scale_factor=1.5, mode="linear", align_corners=True); F.relu(a * 1, inplace=True)
special.detach().unique(return_counts=True); m[[2, 0]]; m[:, [1, 3]]; m[0, [1, 3, 1]]; m[[True, False, True]]
torch.isin(a.detach(), a[2:4].detach()); torch.isin(h.detach(), h[:2].detach())
""".strip(),
)
