"""Batches, shards, one step after another, checkpoints."""

import re
import time
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
from minigrad import Tensor, functional, manual_seed, nn, no_grad
from minigrad.backend import device_of, to_device
from minigrad.parallel import Shards
from minigrad.random import Generator, default_generator
from models.images import normalize
from tests.cuda.runner import HAS_COMPILER
from train import checkpoint, resume, shapes
from train.__main__ import parse
from train.augment import augmentation
from train.batches import batches
from train.dataset import Split
from train.errors import InputError
from train.evaluate import Sums
from train.log import Metrics
from train.loop import DivergedError, Trainer

EVERYTHING = {
    "hflip": 0.5, "crop_padding": 4, "aa": "rand-m9-mstd0.5", "cutout": 4, "reprob": 0.5, "mixup": 0.8, "cutmix": 1.0,
    "aug_repeats": 2, "smoothing": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset():
    return shapes.load(60, 20)


class Small(nn.Module):
    """A model with every kind of parameter, and dropout."""

    def __init__(self):
        self.pos_embed = nn.Parameter(np.zeros((1, 3, 32, 32), np.float32))
        self.conv = nn.Conv2d(3, 4, 8, stride=8)
        self.norm = nn.LayerNorm(64)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(64, 10)

    def no_weight_decay(self):
        return {"pos_embed"}

    def forward(self, x):
        return self.head(self.drop(self.norm(functional.relu(self.conv(x + self.pos_embed)).flatten(1))))


def fit(dataset, **overrides):
    settings = replace(parse(["--epochs", "2", "--batch-size", "16"]), **overrides)
    manual_seed(settings.seed)
    model = Small()
    return list(Trainer(model, dataset, settings).fit()), model


@given(st.integers(0, 50), st.integers(1, 60))
def test_batches_cover_everything_once(count, size):
    parts = list(batches(count, size))
    assert [i for part in parts for i in range(count)[part]] == list(range(count))
    assert all(part.stop - part.start == size for part in parts[:-1]) and all(part.stop <= count for part in parts)


def test_a_split_lives_on_the_device(device):
    split = Split(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1), np.arange(10) * 2)
    there = split.to(device)
    index = Generator(0).permutation(10, device)[3:7]
    images, labels = there.take(index)
    assert device_of(images) == device_of(labels) == device_of(index)
    index = to_device(index, "cpu")
    np.testing.assert_array_equal(to_device(images, "cpu").ravel(), index)
    np.testing.assert_array_equal(to_device(labels, "cpu"), index * 2)


def test_data_that_do_not_fit_are_refused(monkeypatch):
    class OutOfMemoryError(MemoryError):  # CuPy's
        pass

    def full(x, device):
        raise OutOfMemoryError("out of memory allocating 30,720 bytes")

    monkeypatch.setattr("train.dataset.to_device", full)
    split = Split(np.zeros((10, 3, 32, 32), np.uint8), np.zeros(10, int))
    with pytest.raises(InputError, match=r"stays on cuda, and 10 images of 0\.00 GiB do not fit"):
        split.to("cuda")


def test_normalize():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (images / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    result = normalize(images, mean, std)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_a_seed_repeats_a_run_bit_for_bit(dataset):
    (first, model), (second, again) = fit(dataset, threads=2, **EVERYTHING), fit(dataset, threads=2, **EVERYTHING)
    for a, b in zip(first, second, strict=True):
        assert (a.train_loss, a.train_acc, a.test_loss, a.test_acc) == (
            b.train_loss,
            b.train_acc,
            b.test_loss,
            b.test_acc,
        )
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), again.state_dict()[name].numpy())
    other, _ = fit(dataset, threads=2, **EVERYTHING, seed=1)
    assert other[-1].train_loss != first[-1].train_loss


def test_shards_change_nothing_but_rounding(dataset):
    """Without dropout, one, two or three threads take the same steps."""
    runs = []
    for threads in (1, 2, 3):
        settings = replace(parse(["--epochs", "1", "--batch-size", "16"]), threads=threads, smoothing=0.1)
        manual_seed(0)
        model = Small()
        model.drop = nn.Dropout(0.0)
        runs.append(next(Trainer(model, dataset, settings).fit()))
    for run in runs[1:]:
        assert run.train_loss == pytest.approx(runs[0].train_loss, rel=1e-4)
        assert run.test_loss == pytest.approx(runs[0].test_loss, rel=1e-4)


def test_batch_normalisation_sees_whole_batches(dataset):
    settings = replace(parse(["--epochs", "1", "--batch-size", "20"]), threads=2)

    def trained():
        manual_seed(0)
        model = models.create_model("roadmap_00_resnet50_cifar")
        list(Trainer(model, dataset, settings).fit())
        return model.state_dict()

    first, again = trained(), trained()
    for name, value in first.items():
        np.testing.assert_array_equal(value.numpy(), again[name].numpy(), err_msg=name)


def test_shards_may_outnumber_the_images():
    with Shards(4, 0) as shards:
        assert shards.run(len, np.arange(3)) == [1, 1, 1]
        assert sum(shards.run(len, np.arange(11))) == 11


def test_an_error_in_a_shard_is_raised():
    with Shards(2, 0) as shards, pytest.raises(ZeroDivisionError):
        shards.run(lambda part: 1 / 0, np.arange(4))


def test_rate_rises_and_falls(dataset):
    settings = replace(parse(["--epochs", "4", "--batch-size", "30"]), lr=0.1, warmup_epochs=1.0, threads=1)
    rates = [metrics.lr for metrics in Trainer(Small(), dataset, settings).fit()]
    assert rates[0] == pytest.approx(0.1) and rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.01


def test_training_and_evaluation_take_turns(dataset):
    settings = parse(["--epochs", "2", "--batch-size", "60", "--threads", "1"])
    model, modes = Small(), []
    model.register_forward_hook(lambda model, inputs, output: modes.append(model.training))
    list(Trainer(model, dataset, settings).fit())
    assert modes == [True, False, True, False]


def test_smoothing_is_for_training_alone(dataset):
    plain, smooth = (fit(dataset, smoothing=share, lr=1e-9)[0][0] for share in (0.0, 0.9))
    assert smooth.train_loss != pytest.approx(plain.train_loss, rel=1e-3)
    assert smooth.test_loss == pytest.approx(plain.test_loss, rel=1e-3)


@pytest.mark.parametrize("threads", [1, 2])
@given(batch=st.integers(1, 20), parts=st.integers(1, 5), images=st.integers(1, 60))
def test_batches_add_up_to_a_larger_one(dataset, threads, batch, parts, images):
    """The same gradients, loss and right answers, also from batches that are not alike, as at the end of an epoch."""
    images = min(images, batch * parts)
    runs = []
    for choices in ({"batch_size": batch, "grad_accum_steps": parts}, {"batch_size": batch * parts}):
        settings = replace(parse(["--smoothing", "0.1"]), threads=threads, **choices)
        manual_seed(0)
        model = Small()
        model.drop = nn.Dropout(0.0)
        trainer = Trainer(model, dataset, settings)
        trainer.step.move = lambda: True
        sizes = []
        model.register_forward_hook(lambda module, inputs, output, sizes=sizes: sizes.append(len(output)))
        assert trainer.steps == -(-60 // (batch * parts))
        with trainer.shards:
            trainer.step.compute(np.arange(images))
        assert sum(sizes) == images and max(sizes) <= settings.batch_size
        runs.append((trainer.step.sums.means(images), [p.grad.numpy() for p in model.parameters()]))
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=1e-6)
    for found, expected in zip(runs[0][1], runs[1][1], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_sum_over_batches_is_the_same_whichever_shard_ends_first(dataset):
    """Bit for bit: the shards of a batch add up by themselves, then to the batches before."""
    settings = parse(["--batch-size", "16", "--grad-accum-steps", "3", "--threads", "2"])
    runs = []
    for slow in (0, 1):
        manual_seed(0)
        trainer = Trainer(Small(), dataset, settings)
        last = trainer.shards.generators[slow]
        trainer.model.register_forward_hook(lambda *_, last=last: time.sleep(0.05 * (default_generator() is last)))
        trainer.step.move = lambda: True
        with trainer.shards:
            trainer.step.compute(np.arange(48))
        runs.append([p.grad.numpy() for p in trainer.step.parameters])
    for found, expected in zip(*runs, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_the_model_is_given(dataset):
    """The augmentation's own text, with the loop's generator, and targets that are mixed or labels that are not."""
    images, labels = dataset.train.take(np.arange(20))
    for choices in ({}, EVERYTHING, EVERYTHING | {"mixup": 0.0, "cutmix": 0.0}):
        trainer = Trainer(Small(), dataset, replace(parse([]), **choices))
        generator = Generator(trainer.generator.seed)
        given, targets = trainer.step.augmented(images, labels)
        augment = augmentation(trainer.settings, dataset)
        expected = augment.pixels(images, generator)
        expected = augment.normalized(normalize(expected, dataset.mean, dataset.std), generator)
        wanted = labels
        if choices is EVERYTHING:
            expected, wanted = augment.mixed(expected, labels, 10, generator)
        np.testing.assert_array_equal(given, expected)
        np.testing.assert_array_equal(targets, wanted)
        assert (given == normalize(images, dataset.mean, dataset.std)).all() == (not choices)


def test_mixed_targets_are_made_smooth_once(dataset):
    """Mixed with nothing, they are what smoothing makes of labels: the first loss is the same."""
    plain = fit(dataset, smoothing=0.3, batch_size=60, epochs=1, threads=1)[0][0]
    mixed = fit(dataset, smoothing=0.3, batch_size=60, epochs=1, threads=1, mixup=1.0, mixup_prob=0.0)[0][0]
    assert mixed.train_loss == pytest.approx(plain.train_loss, rel=1e-6)


def test_repeats_are_of_fewer_images(dataset):
    trainer = Trainer(Small(), dataset, replace(parse(["--batch-size", "16"]), aug_repeats=3, threads=1))
    seen = []
    trainer.advance = lambda index: seen.append(index)
    trainer.train_epoch("epoch")
    assert [len(index) for index in seen] == [16, 16, 16, 12]
    images, counts = np.unique(np.concatenate(seen), return_counts=True)
    assert len(images) == 20 and set(counts) == {3}


def test_no_augmentation_is_no_repeats_either(dataset):
    settings = replace(parse(["--no-aug", "--aug-repeats", "3"]), threads=1)
    trainer, seen = Trainer(Small(), dataset, settings), []
    trainer.advance = lambda index: seen.append(index)
    trainer.train_epoch("epoch")
    assert sorted(np.concatenate(seen)) == list(range(60))


def test_muon_is_for_the_matrices_of_hidden_layers(dataset):
    settings = replace(parse(["--batch-size", "60", "--opt", "muon"]), threads=1)
    model = models.create_model("swin_nano_cifar")
    trainer = Trainer(model, dataset, settings)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = trainer.step.optimizer.param_groups
    moved = {names[id(p)] for group in groups if group["muon"] for p in group["params"]}
    assert {n.rsplit(".", 2)[-2] for n in moved} == {"qkv", "proj", "fc1", "fc2", "reduction"}
    assert sum(len(group["params"]) for group in groups) == len(names)
    assert not any(name.endswith(("bias", "table")) or name.startswith(("head", "patch_embed")) for name in moved)
    assert {group["weight_decay"] for group in groups if group["muon"]} == {settings.weight_decay}
    losses = [m.train_loss for m in fit(dataset, epochs=4, opt="muon", lr=3e-3, threads=1)[0]]
    assert losses[-1] < 0.95 * losses[0]


def test_a_rate_for_each_depth(dataset):
    """What is written down is the rate of the last layer; the stem's is the decay to the power of what lies between."""
    settings = replace(
        parse(["--batch-size", "60"]), layer_decay=0.5, threads=1, warmup_epochs=0.0, train_num_samples=60
    )
    model = models.create_model("vit_nano_cifar")
    trainer = Trainer(model, dataset, settings)
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


def test_evaluation_is_the_mean_over_all_test_images(dataset):
    trainer = Trainer(Small(), dataset, replace(parse([]), validation_batch_size=7))
    recorded = []
    remove = trainer.model.register_forward_hook(lambda model, inputs, output: recorded.append(output.requires_grad))
    loss, acc = trainer.evaluate()
    remove()
    assert recorded and not any(recorded)
    with no_grad():
        logits = trainer.model(Tensor(normalize(dataset.test.images, dataset.mean, dataset.std)))
    assert loss == pytest.approx(functional.cross_entropy(logits, Tensor(dataset.test.labels)).item(), rel=1e-5)
    assert acc == (logits.numpy().argmax(1) == dataset.test.labels).mean()


def poisoned(model, *calls, name="conv"):
    """A module that gives NaN in these calls of it, counted from 1 and over all threads' shards."""
    seen = count(1)

    def poison(module, inputs, output):
        if module.training and next(seen) in calls:
            output.data[0] = np.nan

    dict(model.named_modules())[name].register_forward_hook(poison)
    return model


@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_not_finite_stops_the_run_before_anything_moves(dataset, threads):
    """The message names the step, the first op and its module."""
    model = Small()
    model.head.bias.data[0] = np.inf
    trainer = Trainer(model, dataset, parse(["--batch-size", "16", "--threads", str(threads)]))
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    message = (
        r"^the loss became nan in step 1 of epoch 1/4: \w+ \(in head\) made 0 NaN and \d+ Inf in its output of shape "
        r"\(\d+, 10\); input \d already had some.*; try a lower --lr or more --warmup-epochs$"
    )
    with pytest.raises(DivergedError, match=message):
        list(trainer.fit())
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.numpy(), before[name])


def test_the_first_op_is_found_with_the_same_random_numbers(dataset, monkeypatch):
    """A step that goes wrong by what is drawn goes wrong in the same way when it is looked at."""
    settings = parse(["--batch-size", "16", "--threads", "2", "--hflip", "0.5"])
    trainer, seen = Trainer(Small(), dataset, settings), []

    def look(module, inputs, output):
        seen.append(inputs[0].data.copy())
        if trainer.position == 1:
            output.data[:] = np.inf

    trainer.model.drop.register_forward_hook(look)
    with pytest.raises(
        DivergedError, match=r"in step 2 of epoch 1/4: Linear \(in head\) made .* input 0 already had some"
    ):
        list(trainer.fit())
    first, again = ({x.tobytes() for x in part} for part in (seen[2:4], seen[4:6]))
    assert len(seen) == 6 and first == again


class Root(Small):
    """Its loss is finite, as √0 is; its slope is not."""

    def forward(self, x):
        return super().forward(x) + (self.head.bias * 0).sqrt().sum()


def test_a_gradient_that_is_not_finite_stops_the_run(dataset):
    """The message names the backward."""
    model = Root()
    trainer = Trainer(model, dataset, parse(["--batch-size", "16"]))
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    with pytest.raises(DivergedError, match=r"^a gradient became infinite or NaN in step 1 of epoch 1/4: Sqrt"):
        list(trainer.fit())
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.numpy(), before[name])


@pytest.mark.parametrize("flags", [[], ["--model-ema"], ["--batch-size", "8", "--grad-accum-steps", "2"]])
def test_steps_that_are_not_finite_are_skipped_and_counted(dataset, flags):
    """Such a step changes neither weights nor optimiser nor average, and is no part of the mean loss."""
    settings = parse(["--epochs", "2", "--batch-size", "16", "--threads", "1", "--skip-nonfinite", *flags])
    trainer = Trainer(poisoned(Small(), 2, 3), dataset, settings)
    step, moved = trainer.advance, []

    def watched(index):
        state = {**trainer.model.state_dict(), **(trainer.step.ema.state_dict() if trainer.step.ema else {})}
        before = {name: np.copy(x.numpy() if isinstance(x, Tensor) else x) for name, x in state.items()}
        step(index)
        state = {**trainer.model.state_dict(), **(trainer.step.ema.state_dict() if trainer.step.ema else {})}
        moved.append(any((before[k] != (x.numpy() if isinstance(x, Tensor) else x)).any() for k, x in state.items()))

    trainer.advance = watched
    epochs = trainer.fit()
    first = next(epochs)
    assert first.train_loss == trainer.step.sums.sums[0] / (60 - 2 * 16)
    second = next(epochs)
    left_out = [0, 1] if settings.grad_accum_steps > 1 else [1, 2]
    assert (first.skipped, second.skipped) == (2, 0) and "2 steps skipped" in first.line(2)
    assert moved == [i not in left_out for i in range(8)]
    assert 1 < first.train_loss < 4 and trainer.step.optimizer.state[0][0]["step"] == 6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--skip-nonfinite"], "a loss or a gradient was not finite in every step of epoch 1/1"),
        ([], r"the loss became nan in step 1 of epoch 1/1: Linear \(in fc\) made"),
    ],
)
def test_a_step_that_is_not_finite_leaves_running_statistics_alone(dataset, flags, message):
    model = models.create_model("roadmap_00_resnet50_cifar")
    model.head.bias.data[0] = np.inf
    trainer = Trainer(model, dataset, parse(["--epochs", "1", "--batch-size", "60", *flags]))
    before = {name: x.numpy().copy() for name, x in model.state_dict().items()}
    with pytest.raises(DivergedError, match=message):
        list(trainer.fit())
    for name, x in model.state_dict().items():
        np.testing.assert_array_equal(x.numpy(), before[name], err_msg=name)


def test_a_gpu_is_waited_for_now_and_then(device, monkeypatch):
    """On the CPU the sums are read after each step, on a GPU after every twentieth, and the bar moves then."""
    seen, read = [], Sums.means

    class Bar:
        __init__ = __exit__ = lambda self, *arguments, **options: None
        __enter__ = lambda self: self  # noqa: E731
        update = lambda self, count, note: seen.append(count)  # noqa: E731

    read_at = []
    monkeypatch.setattr("train.loop.Progress", Bar)
    monkeypatch.setattr(Sums, "means", lambda self, images: read_at.append(images) or read(self, images))
    settings = parse(["--epochs", "1", "--batch-size", "2", "--device", device, "--no-graph", "--threads", "1"])
    Trainer(Small().to(device), shapes.load(101, 2), settings).train_epoch("epoch 1/1")
    assert read_at == ([*range(2, 102, 2), 101] if device == "cpu" else [40, 80, 101])
    assert sum(seen) == 101 and seen == list(np.diff([0, *read_at]))


def test_a_step_is_a_graph_if_it_can_be():
    def settled(*flags):
        settings = parse(["--device", "cuda", *flags])
        return settings.graph, settings.why_no_graph

    assert settled() == settled("--amp") == (True, "") and settled("--no-graph") == (False, "")
    for flags, reason in (
        (["--threads", "2"], "one thread"),
        (["--opt", "muon"], "Muon's matrices"),
        (["--amp", "--amp-dtype", "float16"], "float16's loss"),
        (["--skip-nonfinite"], "nobody sees into"),
    ):
        graph, why = settled(*flags)
        assert not graph and reason in why


@pytest.mark.parametrize("graph", ["--graph", "--no-graph"])
def test_a_gpus_loss_that_is_not_finite_stops_the_run(graph, device, tmp_path):
    """It is seen at the next look at the loss; then the epoch, once more and step by step, tells why."""
    if device == "cpu" or not HAS_COMPILER:
        pytest.skip("of a GPU")
    model = models.create_model("vit_nano_cifar", depth=1).to(device)
    settings = parse(["--epochs", "2", "--batch-size", "2", "--device", device, graph, "--model-ema"])
    trainer = Trainer(model, shapes.load(20, 2), settings)
    epochs = trainer.fit()
    history = [next(epochs)]
    assert trainer.settings.graph == (graph == "--graph")
    resume.save(tmp_path / "resume.npz", trainer, history)
    model.head.bias.data[0] = np.inf
    with pytest.raises(DivergedError, match=r"the loss became nan not later than in step 10 of epoch 2/2; try a lower"):
        next(epochs)
    assert resume.look_again(tmp_path / "resume.npz", trainer) == ""  # the state was saved before


def test_why_a_gpus_loss_is_not_finite(device, tmp_path):
    if device == "cpu" or not HAS_COMPILER:
        pytest.skip("of a GPU")
    flags = ["--epochs", "2", "--batch-size", "2", "--device", device, "--lr", "1e4", "--clip-grad", "0"]
    model = models.create_model("vit_nano_cifar", depth=1).to(device)
    trainer = Trainer(model, shapes.load(20, 2), parse(flags))
    resume.save(tmp_path / "resume.npz", trainer, [])
    with pytest.raises(DivergedError, match="not later than in step 10 of epoch 1/2; try"):
        next(trainer.fit())
    found = resume.look_again(tmp_path / "resume.npz", trainer)
    said = (
        r"(the loss|a gradient) became .* in step [5-9] of epoch 1/2: \w+ \(in [\w.]+\) made .*it starts here.*; try a "
    )
    assert re.match(said, found), found


# The moving average ---------------------------------------------------------------------------------------------------


def test_the_average_is_tested_and_the_model_trained(dataset):
    """What trains is what trains without it; what is tested is the average, by its formula."""
    plain, model = fit(dataset, threads=1)
    settings = replace(parse(["--epochs", "2", "--batch-size", "16"]), threads=1, model_ema=True, model_ema_decay=0.6)
    manual_seed(0)
    averaged = Small()
    trainer = Trainer(averaged, dataset, settings)
    expected = {name: p.numpy().copy() for name, p in averaged.named_parameters()}
    step = trainer.advance

    def watched(index):
        step(index)
        t = trainer.step.ema.updates - 1
        for name, p in averaged.named_parameters():
            expected[name] += (1 - min(0.6, (1 + t) / (10 + t))) * (p.numpy() - expected[name])

    trainer.advance = watched
    epochs = list(trainer.fit())
    assert trainer.step.ema.updates == 8
    for ours, theirs in zip(epochs, plain, strict=True):
        assert ours.train_loss == theirs.train_loss and ours.test_loss != theirs.test_loss
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(averaged.state_dict()[name].numpy(), p.numpy())
    averaged.load_state_dict(expected)
    loss, _ = Trainer(averaged, dataset, parse([])).evaluate()
    assert epochs[-1].test_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_checkpoint(dataset, suffix, tmp_path):
    if suffix == "safetensors":
        pytest.importorskip("safetensors")
    settings = parse(["--train-num-samples", "60", "--epochs", "1"])
    manual_seed(0)
    model = models.create_model(**checkpoint.model_arguments(dataset, settings))
    metrics = Metrics(1, 1e-3, 2.0, 0.25, 2.1, 0.2, 1.0, 60.0)
    checkpoint.save(tmp_path / f"last.{suffix}", model, dataset, settings, metrics)
    loaded, metadata = checkpoint.load(tmp_path / f"last.{suffix}")
    assert metadata["epoch"] == 1 and metadata["classes"] == list(shapes.FIGURES)
    assert metadata["test_acc"] == metrics.test_acc and metadata["settings"]["lr"] == settings.lr
    assert not loaded.training
    images = Tensor(normalize(dataset.test.images, metadata["mean"], metadata["std"]))
    with no_grad():
        np.testing.assert_array_equal(loaded(images).numpy(), model.eval()(images).numpy())


# Mixed precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_learns_as_float32_does(dtype):
    dataset = shapes.load(200, 20)
    losses = [
        [epoch.train_loss for epoch in fit(dataset, epochs=4, lr=3e-3, threads=1, **choices)[0]]
        for choices in ({}, {"amp": True, "amp_dtype": dtype})
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
    assert losses[0] != losses[1] and losses[1][-1] < 0.95 * losses[1][0]


HALF = ["--amp", "--amp-dtype", "float16", "--threads", "1"]


def test_what_overflows_is_left_out(dataset):
    """The first scale of a loss may be too large: then nothing moves, no buffer either, and the next one is smaller."""
    model = models.create_model("roadmap_00_resnet50_cifar")
    trainer = Trainer(model, dataset, parse(["--batch-size", "16", "--model-ema", *HALF]))
    trainer.step.scaler.factor = 2.0**60
    before = {name: x.numpy().copy() for name, x in model.state_dict().items()}
    trainer.advance(np.arange(16))
    assert trainer.step.scaler.get_scale() == 2.0**59 and trainer.step.skipped == 1
    assert trainer.step.ema.updates == 0 and not trainer.step.optimizer.state[0][0]
    for name, x in model.state_dict().items():
        np.testing.assert_array_equal(x.numpy(), before[name], err_msg=name)


@pytest.mark.parametrize("flags", [[], ["--skip-nonfinite"]])
def test_an_overflow_is_counted_and_its_loss_is_in_the_mean(dataset, flags):
    """The loss of such a step is finite. Even if all steps of an epoch are left out, the scale is still being found."""
    settings = parse(["--epochs", "2", "--batch-size", "16", "--lr", "1e-9", *HALF, *flags])
    runs = []
    for scale in (2.0**16, 2.0**63):
        manual_seed(0)
        trainer = Trainer(Small(), dataset, settings)
        trainer.step.scaler.factor = scale
        runs.append(list(trainer.fit()))
    for found, expected in zip(*reversed(runs), strict=True):
        assert (
            found.train_loss == pytest.approx(expected.train_loss, rel=1e-5) and found.train_acc == expected.train_acc
        )
        assert (found.skipped, expected.skipped) == (4, 0) and "4 steps skipped" in found.line(2)


@pytest.mark.parametrize("flags", [[], ["--skip-nonfinite"]])
def test_what_no_scale_makes_finite_stops_the_run(dataset, flags):
    """From 2^16 on it is halved 30 times, to 2^-14. No step has moved anything."""
    trainer = Trainer(Root(), dataset, parse(["--batch-size", "1", "--model-ema", *HALF, *flags]))
    before = {name: p.numpy().copy() for name, p in trainer.model.named_parameters()}
    message = r"^a gradient is infinite or NaN even with the smallest scale, 6.1\S*e-05 in step 31 of epoch 1/4: Sqrt"
    with pytest.raises(DivergedError, match=message):
        list(trainer.fit())
    assert trainer.step.scaler.get_scale() == 2.0**-14 and trainer.step.ema.updates == 0
    for name, p in trainer.model.named_parameters():
        np.testing.assert_array_equal(p.numpy(), before[name])


def test_a_scaled_loss_is_looked_at_on_a_gpu_too(device):
    """The host waits for its gradients anyway."""
    if device == "cpu" or not HAS_COMPILER:
        pytest.skip("of a GPU")
    model = Small().to(device)
    model.head.bias.data[0] = np.inf
    settings = parse(["--batch-size", "4", "--device", device, *HALF])
    assert not settings.graph
    with pytest.raises(DivergedError, match=r"^the loss became nan in step 1 of epoch 1/4: \w+ \(in head\) made"):
        list(Trainer(model, shapes.load(8, 2), settings).fit())


def test_evaluation_is_in_mixed_precision_too(dataset):
    trainer = Trainer(Small(), dataset, replace(parse([]), amp=True, threads=1))
    seen = []
    trainer.model.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype.name))
    trainer.evaluate()
    assert set(seen) == {"bfloat16"}
