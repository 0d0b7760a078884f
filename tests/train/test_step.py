"""A training step: gradients, updates, NaN and Inf."""

import time
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
from minigrad import Tensor, manual_seed, nn, optim
from minigrad.backend.random import Generator, default_generator
from models.images import normalize
from tests.cuda.runner import HAS_COMPILER
from tests.train.small import EVERYTHING, Small, fit
from train.__main__ import parse
from train.create import create_augment, create_trainer
from train.data import shapes
from train.loop import DivergedError

HALF = ["--amp", "--amp-dtype", "float16", "--threads", "1"]


@pytest.mark.parametrize("threads", [1, 2])
@given(batch=st.integers(1, 20), parts=st.integers(1, 5), images=st.integers(1, 60))
def test_accumulated_gradients_equal_a_larger_batch(dataset, threads, batch, parts, images):
    """Gradients, loss and accuracy are equal, also with a smaller last batch."""
    images = min(images, batch * parts)
    runs = []
    for options in ({"batch_size": batch, "grad_accum_steps": parts}, {"batch_size": batch * parts}):
        settings = replace(parse(["--smoothing", "0.1", "--clip-grad", "0"]), threads=threads, **options)
        manual_seed(0)
        model = Small()
        model.drop = nn.Dropout(0.0)
        trainer = create_trainer(settings, model, dataset)
        trainer.step.optimizer.step = lambda: None
        sizes = []
        model.register_forward_hook(lambda module, inputs, output, sizes=sizes: sizes.append(len(output)))
        assert trainer.steps == -(-60 // (batch * parts))
        with trainer.step.shards:
            trainer.step.compute(np.arange(images))
        assert sum(sizes) == images and max(sizes) <= settings.batch_size
        runs.append((trainer.step.sums.means(images), [p.grad.numpy() for p in model.parameters()]))
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=1e-6)
    for found, expected in zip(runs[0][1], runs[1][1], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_gradient_sum_is_independent_of_thread_order(dataset):
    """The gradients of the shards of a batch are summed first, then added to the sum of earlier batches."""
    settings = parse(["--batch-size", "16", "--grad-accum-steps", "3", "--threads", "2", "--clip-grad", "0"])
    runs = []
    for slow in (0, 1):
        manual_seed(0)
        trainer = create_trainer(settings, Small(), dataset)
        last = trainer.step.shards.generators[slow]
        trainer.model.register_forward_hook(lambda *_, last=last: time.sleep(0.05 * (default_generator() is last)))
        trainer.step.optimizer.step = lambda: None
        with trainer.step.shards:
            trainer.step.compute(np.arange(48))
        runs.append([p.grad.numpy() for p in trainer.step.parameters])
    for found, expected in zip(*runs, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_inputs_and_targets_equal_the_augmentation(dataset):
    """Without mixup, the targets are class indices."""
    images, labels = dataset.train.take(np.arange(20))
    for options in ({}, EVERYTHING, EVERYTHING | {"mixup": 0.0, "cutmix": 0.0}):
        settings = replace(parse([]), **options)
        transform = create_trainer(settings, Small(), dataset).step.transform
        generator = Generator(transform.generator.seed)
        given, targets = transform(images, labels)
        augment = create_augment(settings, dataset)
        expected = augment.pixels(images, generator)
        expected = augment.normalized(normalize(expected, dataset.mean, dataset.std), generator)
        wanted = labels
        if options is EVERYTHING:
            expected, wanted = augment.mixed(expected, labels, 10, generator)
        np.testing.assert_array_equal(given, expected)
        np.testing.assert_array_equal(targets, wanted)
        assert (given == normalize(images, dataset.mean, dataset.std)).all() == (not options)


def test_mixed_targets_are_smoothed_once(dataset):
    """With mixup probability 0 the targets are smoothed labels: the first loss is that of label smoothing."""
    plain = fit(dataset, smoothing=0.3, batch_size=60, epochs=1, threads=1)[0][0]
    mixed = fit(dataset, smoothing=0.3, batch_size=60, epochs=1, threads=1, mixup=1.0, mixup_prob=0.0)[0][0]
    assert mixed.train_loss == pytest.approx(plain.train_loss, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "stem", "layers"),
    [
        ("vit_nano_cifar", "patch_embed", {"qkv", "proj", "fc1", "fc2"}),
        ("swin_nano_cifar", "patch_embed", {"qkv", "proj", "fc1", "fc2", "reduction"}),
        ("convnext_micro_cifar", "downsample_layers.0", {"pwconv1", "pwconv2", "1"}),  # 1: of a downsampling
        (
            "hybrid_micro_cifar", "patch_embed.backbone.stem",
            {"conv1", "conv2", "conv3", "conv", "qkv", "proj", "fc1", "fc2"},
        ),
        ("roadmap_00_resnet50_cifar", "conv1", {"conv1", "conv2", "conv3", "0"}),  # 0: of a shortcut; head: fc
        ("deit_tiny_distilled_patch16_224", "patch_embed", {"qkv", "proj", "fc1", "fc2"}),  # two heads
    ],
)  # fmt: skip
def test_muon_updates_hidden_matrices_and_filters_only(name, stem, layers, dataset):
    settings = replace(parse(["--batch-size", "60", "--opt", "muon"]), threads=1)
    model = models.create_model(name)
    trainer = create_trainer(settings, model, dataset)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = trainer.step.optimizer.param_groups
    updated = {names[id(p)] for group in groups if group["muon"] for p in group["params"]}
    assert {n.rsplit(".", 2)[-2] for n in updated} == layers
    assert sum(len(group["params"]) for group in groups) == len(names)
    assert not any(name.endswith(("bias", "table")) or name.startswith(("head", "fc.", stem)) for name in updated)
    assert {group["weight_decay"] for group in groups if group["muon"]} == {settings.weight_decay}


def test_muon_trains(dataset):
    losses = [m.train_loss for m in fit(dataset, epochs=4, opt="muon", lr=3e-3, threads=1)[0]]
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("opt", ["adam", "sgd"])
def test_adam_and_sgd_decay_only_weights(dataset, opt):
    """The defaults of the optimizer; biases, norms and embeddings have no weight decay; the loss decreases."""
    settings = parse(["--opt", opt, "--weight-decay", "0.01", "--momentum", "0.8"])
    model = Small()
    optimizer = create_trainer(settings, model, dataset).step.optimizer
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.01 if name in ("conv.weight", "head.weight") else 0), name
    assert type(optimizer) is {"adam": optim.Adam, "sgd": optim.SGD}[opt]
    if opt == "sgd":
        assert all(group["momentum"] == 0.8 and group["nesterov"] for group in optimizer.param_groups)
    lr = {"adam": 3e-3, "sgd": 0.1}[opt]
    losses = [m.train_loss for m in fit(dataset, epochs=4, opt=opt, lr=lr, threads=1, weight_decay=0.0)[0]]
    assert losses[-1] < 0.95 * losses[0]


def test_layer_decay_sets_learning_rates_by_depth(dataset):
    """The head has the learning rate --lr, the stem lr · decay^5. `Trainer.lr` is the head's learning rate."""
    settings = replace(
        parse(["--batch-size", "60"]), layer_decay=0.5, threads=1, warmup_epochs=0.0, train_num_samples=60
    )
    model = models.create_model("vit_nano_cifar")
    trainer = create_trainer(settings, model, dataset)
    rates = {id(p): group["lr"] for group in trainer.step.optimizer.param_groups for p in group["params"]}
    assert rates[id(model.head.weight)] == settings.lr
    assert rates[id(model.patch_embed.proj.weight)] == pytest.approx(settings.lr * 0.5**5)
    trainer.advance(np.arange(60))
    assert trainer.lr == settings.lr


def test_gradients_are_clipped(dataset, monkeypatch):
    norms = []
    monkeypatch.setattr("train.step.clip_grad_norm_", lambda parameters, limit: norms.append(limit))
    fit(dataset, clip_grad=0.5)
    assert norms == [0.5] * 8
    norms.clear()
    fit(dataset, clip_grad=0.0)
    assert norms == []


def poisoned(model, *calls, name="conv"):
    """The model with a module that returns NaN in the given calls, counted from 1 over all threads."""
    seen = count(1)

    def poison(module, inputs, output):
        if module.training and next(seen) in calls:
            output.data[0] = np.nan

    dict(model.named_modules())[name].register_forward_hook(poison)
    return model


@pytest.mark.parametrize("threads", [1, 2])
def test_nonfinite_loss_stops_before_the_update(dataset, threads):
    """The message names the step, the first op with Inf and its module. No parameter changes."""
    model = Small()
    model.head.bias.data[0] = np.inf
    trainer = create_trainer(parse(["--batch-size", "16", "--threads", str(threads)]), model, dataset)
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    message = (
        r"^the loss became nan in step 1 of epoch 1/4: \w+ \(in head\) computed 0 NaN and \d+ Inf in its output of "
        r"shape \(\d+, 10\); input \d was already not finite.*; try a lower --lr or more --warmup-epochs$"
    )
    with pytest.raises(DivergedError, match=message):
        list(trainer.fit())
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.numpy(), before[name])


def test_search_for_first_op_repeats_random_numbers(dataset, monkeypatch):
    """The repeated step sees the same augmented images as the failed step."""
    settings = parse(["--batch-size", "16", "--threads", "2", "--hflip", "0.5"])
    trainer, seen = create_trainer(settings, Small(), dataset), []

    def record(module, inputs, output):
        seen.append(inputs[0].data.copy())
        if trainer.position == 1:
            output.data[:] = np.inf

    trainer.model.drop.register_forward_hook(record)
    message = r"in step 2 of epoch 1/4: Linear \(in head\) computed .* input 0 was already not finite"
    with pytest.raises(DivergedError, match=message), trainer.step.shards:  # which waits for both threads
        list(trainer.fit())
    first, again = ({x.tobytes() for x in part} for part in (seen[2:4], seen[4:6]))
    assert len(seen) == 6 and first == again


class Root(Small):
    """A model with a finite loss and an infinite gradient: √x at x = 0."""

    def forward(self, x):
        return super().forward(x) + (self.head.bias * 0).sqrt().sum()


def test_nonfinite_gradient_stops_before_the_update(dataset):
    """The message names the op whose backward made Inf. No parameter changes."""
    model = Root()
    trainer = create_trainer(parse(["--batch-size", "16"]), model, dataset)
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    with pytest.raises(DivergedError, match=r"^a gradient became infinite or NaN in step 1 of epoch 1/4: Sqrt"):
        list(trainer.fit())
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.numpy(), before[name])


def test_infinite_gradient_sum_stops_before_the_update(dataset):
    """Each op makes finite gradients; only their sum, 6e38, is above the range of float32."""
    trainer = create_trainer(parse(["--batch-size", "60", "--threads", "1"]), Small(), dataset)
    bias = trainer.model.head.bias
    trainer.step.criterion = lambda logits, targets: (bias * 3e38).sum() + (bias * 3e38).sum()
    before = bias.numpy().copy()
    message = "in step 1 of epoch 1/4: each op is finite, the sum of the gradients is not; try"
    with pytest.raises(DivergedError, match=message):
        list(trainer.fit())
    np.testing.assert_array_equal(bias.numpy(), before)


@pytest.mark.parametrize("flags", [[], ["--model-ema"], ["--batch-size", "8", "--grad-accum-steps", "2"]])
def test_nonfinite_steps_are_skipped_and_counted(dataset, flags):
    """A skipped step changes neither weights nor optimizer state nor EMA, and does not count in the mean loss."""
    settings = parse(["--epochs", "2", "--batch-size", "16", "--threads", "1", "--skip-nonfinite", *flags])
    trainer = create_trainer(settings, poisoned(Small(), 2, 3), dataset)
    step, updated = trainer.advance, []

    def recorded_step(index):
        state = {**trainer.model.state_dict(), **(trainer.step.ema.state_dict() if trainer.step.ema else {})}
        before = {name: np.copy(x.numpy() if isinstance(x, Tensor) else x) for name, x in state.items()}
        step(index)
        state = {**trainer.model.state_dict(), **(trainer.step.ema.state_dict() if trainer.step.ema else {})}
        updated.append(any((before[k] != (x.numpy() if isinstance(x, Tensor) else x)).any() for k, x in state.items()))

    trainer.advance = recorded_step
    epochs = trainer.fit()
    first = next(epochs)
    assert first.train_loss == trainer.step.sums.sums[0] / (60 - 2 * 16)
    second = next(epochs)
    left_out = [0, 1] if settings.grad_accum_steps > 1 else [1, 2]
    assert (first.skipped, second.skipped) == (2, 0) and "2 steps skipped" in first.line(2)
    assert updated == [i not in left_out for i in range(8)]
    assert 1 < first.train_loss < 4 and trainer.step.optimizer.state[0][0]["step"] == 6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--skip-nonfinite"], "a loss or a gradient was not finite in every step of epoch 1/1"),
        ([], r"the loss became nan in step 1 of epoch 1/1: Linear \(in fc\) computed"),
    ],
)
def test_nonfinite_step_restores_running_statistics(dataset, flags, message):
    model = models.create_model("roadmap_00_resnet50_cifar")
    model.head.bias.data[0] = np.inf
    trainer = create_trainer(parse(["--epochs", "1", "--batch-size", "60", *flags]), model, dataset)
    before = {name: x.numpy().copy() for name, x in model.state_dict().items()}
    with pytest.raises(DivergedError, match=message):
        list(trainer.fit())
    for name, x in model.state_dict().items():
        np.testing.assert_array_equal(x.numpy(), before[name], err_msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_matches_float32_losses(dtype):
    dataset = shapes.load(200, 20)
    losses = [
        [epoch.train_loss for epoch in fit(dataset, epochs=4, lr=3e-3, threads=1, **options)[0]]
        for options in ({}, {"amp": True, "amp_dtype": dtype})
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
    assert losses[0] != losses[1] and losses[1][-1] < 0.95 * losses[1][0]


def test_overflow_skips_the_update_and_lowers_the_scale(dataset):
    """On overflow, parameters and buffers are unchanged, and the next loss scale is half."""
    model = models.create_model("roadmap_00_resnet50_cifar")
    trainer = create_trainer(parse(["--batch-size", "16", "--model-ema", *HALF]), model, dataset)
    trainer.step.scaler.factor = 2.0**60
    before = {name: x.numpy().copy() for name, x in model.state_dict().items()}
    trainer.advance(np.arange(16))
    assert trainer.step.scaler.get_scale() == 2.0**59 and trainer.step.skipped == 1
    assert trainer.step.ema.updates == 0 and not trainer.step.optimizer.state[0][0]
    for name, x in model.state_dict().items():
        np.testing.assert_array_equal(x.numpy(), before[name], err_msg=name)


@pytest.mark.parametrize("flags", [[], ["--skip-nonfinite"]])
def test_overflow_is_counted_and_its_loss_included(dataset, flags):
    """The loss of an overflowed step is finite. An epoch in which all steps overflow does not stop the run."""
    settings = parse(["--epochs", "2", "--batch-size", "16", "--lr", "1e-9", *HALF, *flags])
    runs = []
    for scale in (2.0**16, 2.0**63):
        manual_seed(0)
        trainer = create_trainer(settings, Small(), dataset)
        trainer.step.scaler.factor = scale
        runs.append(list(trainer.fit()))
    for found, expected in zip(*reversed(runs), strict=True):
        assert (
            found.train_loss == pytest.approx(expected.train_loss, rel=1e-5) and found.train_acc == expected.train_acc
        )
        assert (found.skipped, expected.skipped) == (4, 0) and "4 steps skipped" in found.line(2)


@pytest.mark.parametrize("flags", [[], ["--skip-nonfinite"]])
def test_overflow_at_the_smallest_scale_stops_the_run(dataset, flags):
    """The scale is halved 30 times, from 2^16 to 2^-14, without any update."""
    trainer = create_trainer(parse(["--batch-size", "1", "--model-ema", *HALF, *flags]), Root(), dataset)
    before = {name: p.numpy().copy() for name, p in trainer.model.named_parameters()}
    message = r"^a gradient is infinite or NaN even with the smallest scale, 6.1\S*e-05 in step 31 of epoch 1/4: Sqrt"
    with pytest.raises(DivergedError, match=message):
        list(trainer.fit())
    assert trainer.step.scaler.get_scale() == 2.0**-14 and trainer.step.ema.updates == 0
    for name, p in trainer.model.named_parameters():
        np.testing.assert_array_equal(p.numpy(), before[name])


def test_scaled_loss_is_checked_at_each_step_on_gpu(device):
    """Loss scaling synchronizes at each step anyway."""
    if device == "cpu" or not HAS_COMPILER:
        pytest.skip("of a GPU")
    model = Small().to(device)
    model.head.bias.data[0] = np.inf
    settings = parse(["--batch-size", "4", "--device", device, *HALF])
    assert not settings.graph
    with pytest.raises(DivergedError, match=r"^the loss became nan in step 1 of epoch 1/4: \w+ \(in head\) computed"):
        list(create_trainer(settings, model, shapes.load(8, 2)).fit())
