"""Batches, shards, epochs, evaluation, checkpoints."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models.weights.checkpoint
from minigrad import Tensor, functional, manual_seed, no_grad
from minigrad.backend import device_of, to_device
from minigrad.backend.random import Generator
from models.images import normalize
from tests.cuda.runner import HAS_COMPILER
from tests.train.small import EVERYTHING, Small, fit, info_of
from train.__main__ import parse
from train.config.errors import InputError
from train.create import create_trainer, model_arguments
from train.data import shapes
from train.data.batches import batches
from train.data.dataset import Split
from train.evaluate import Sums
from train.loop import DivergedError
from train.output import checkpoint, resume
from train.output.log import Metrics


@given(st.integers(0, 50), st.integers(1, 60))
def test_batches_cover_each_index_once(count, size):
    parts = list(batches(count, size))
    assert [i for part in parts for i in range(count)[part]] == list(range(count))
    assert all(part.stop - part.start == size for part in parts[:-1]) and all(part.stop <= count for part in parts)


def test_split_moves_to_the_device(device):
    split = Split(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1), np.arange(10) * 2)
    there = split.to(device)
    index = Generator(0).permutation(10, device)[3:7]
    images, labels = there.take(index)
    assert device_of(images) == device_of(labels) == device_of(index)
    index = to_device(index, "cpu")
    np.testing.assert_array_equal(to_device(images, "cpu").ravel(), index)
    np.testing.assert_array_equal(to_device(labels, "cpu"), index * 2)


def test_data_larger_than_device_memory_is_refused(monkeypatch):
    class OutOfMemoryError(MemoryError):  # CuPy's
        pass

    def full(x, device):
        raise OutOfMemoryError("out of memory allocating 30,720 bytes")

    monkeypatch.setattr("train.data.dataset.to_device", full)
    split = Split(np.zeros((10, 3, 32, 32), np.uint8), np.zeros(10, int))
    with pytest.raises(InputError, match=r"10 images of 0\.00 GiB do not fit into the memory of cuda"):
        split.to("cuda")


def test_normalize_subtracts_mean_and_divides_by_std():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (images / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    result = normalize(images, mean, std)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_same_seed_gives_bitwise_equal_runs(dataset):
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


def test_thread_count_changes_only_rounding(dataset):
    """With dropout, runs with one, two and three threads have equal losses up to rounding."""
    runs = []
    for threads in (1, 2, 3):
        settings = replace(parse(["--epochs", "1", "--batch-size", "16"]), threads=threads, smoothing=0.1)
        manual_seed(0)
        runs.append(next(create_trainer(settings, Small(), dataset).fit()))
    for run in runs[1:]:
        assert run.train_loss == pytest.approx(runs[0].train_loss, rel=1e-4)
        assert run.test_loss == pytest.approx(runs[0].test_loss, rel=1e-4)


def test_batch_norm_uses_the_entire_batch(dataset):
    def trained(threads):
        settings = replace(parse(["--epochs", "1", "--batch-size", "20"]), threads=threads)
        manual_seed(0)
        model = models.create_model("roadmap_00_resnet50_cifar")
        (metrics,) = create_trainer(settings, model, dataset).fit()
        return model.state_dict(), metrics

    (one, metrics), (two, metrics_of_two), (again, _) = trained(1), trained(2), trained(2)
    assert metrics_of_two.train_loss == pytest.approx(metrics.train_loss, rel=1e-3)
    for name, value in two.items():
        np.testing.assert_array_equal(value.numpy(), again[name].numpy(), err_msg=name)
        if "running" in name:
            np.testing.assert_allclose(value.numpy(), one[name].numpy(), rtol=0.01, atol=1e-3, err_msg=name)


def test_learning_rate_warms_up_and_decays(dataset):
    settings = replace(parse(["--epochs", "4", "--batch-size", "30"]), lr=0.1, warmup_epochs=1.0, threads=1)
    rates = [metrics.lr for metrics in create_trainer(settings, Small(), dataset).fit()]
    assert rates[0] == pytest.approx(0.1) and rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.01


def test_train_and_eval_mode_alternate(dataset):
    settings = parse(["--epochs", "2", "--batch-size", "60", "--threads", "1"])
    model, modes = Small(), []
    model.register_forward_hook(lambda model, inputs, output: modes.append(model.training))
    list(create_trainer(settings, model, dataset).fit())
    assert modes == [True, False, True, False]


def test_label_smoothing_affects_training_only(dataset):
    plain, smooth = (fit(dataset, smoothing=share, lr=1e-9)[0][0] for share in (0.0, 0.9))
    assert smooth.train_loss != pytest.approx(plain.train_loss, rel=1e-3)
    assert smooth.test_loss == pytest.approx(plain.test_loss, rel=1e-3)


def test_aug_repeats_uses_fewer_images(dataset):
    trainer = create_trainer(replace(parse(["--batch-size", "16"]), aug_repeats=3, threads=1), Small(), dataset)
    seen = []
    trainer.advance = lambda index: seen.append(index)
    trainer.train_epoch("epoch")
    assert [len(index) for index in seen] == [16, 16, 16, 12]
    images, counts = np.unique(np.concatenate(seen), return_counts=True)
    assert len(images) == 20 and set(counts) == {3}


def test_no_aug_disables_aug_repeats(dataset):
    settings = replace(parse(["--no-aug", "--aug-repeats", "3"]), threads=1)
    trainer, seen = create_trainer(settings, Small(), dataset), []
    trainer.advance = lambda index: seen.append(index)
    trainer.train_epoch("epoch")
    assert sorted(np.concatenate(seen)) == list(range(60))


def test_evaluation_is_the_mean_over_test_images(dataset):
    trainer = create_trainer(replace(parse([]), validation_batch_size=7), Small(), dataset)
    recorded = []
    remove = trainer.model.register_forward_hook(lambda model, inputs, output: recorded.append(output.requires_grad))
    loss, acc = trainer.evaluate()
    remove()
    assert recorded and not any(recorded)
    with no_grad():
        logits = trainer.model(Tensor(normalize(dataset.test.images, dataset.mean, dataset.std)))
    assert loss == pytest.approx(functional.cross_entropy(logits, Tensor(dataset.test.labels)).item(), rel=1e-5)
    assert acc == (logits.numpy().argmax(1) == dataset.test.labels).mean()


def test_loss_is_read_every_20_steps_on_gpu(device, monkeypatch):
    """On the CPU the loss is read after each step, on a GPU every 20 steps. The progress bar follows."""
    seen, read = [], Sums.means

    class Bar:
        __init__ = __exit__ = lambda self, *arguments, **options: None
        __enter__ = lambda self: self  # noqa: E731
        update = lambda self, count, note: seen.append(count)  # noqa: E731

    read_at = []
    monkeypatch.setattr("train.loop.Progress", Bar)
    monkeypatch.setattr(Sums, "means", lambda self, images: read_at.append(images) or read(self, images))
    settings = parse(["--epochs", "1", "--batch-size", "2", "--device", device, "--no-graph", "--threads", "1"])
    create_trainer(settings, Small().to(device), shapes.load(101, 2)).train_epoch("epoch 1/1")
    assert read_at == ([*range(2, 102, 2), 101] if device == "cpu" else [40, 80, 101])
    assert sum(seen) == 101 and seen == list(np.diff([0, *read_at]))


def test_cuda_graph_is_the_default_where_possible():
    def settled(*flags):
        settings = parse(["--device", "cuda", *flags])
        return settings.graph, settings.why_no_graph

    assert settled() == settled("--amp") == settled("--opt", "adam") == (True, "")
    assert settled("--no-graph") == (False, "")
    for flags, reason in (
        (["--threads", "2"], "one thread"),
        (["--opt", "muon"], "the learning rates of SGD and Muon"),
        (["--opt", "sgd"], "the learning rates of SGD and Muon"),
        (["--amp", "--amp-dtype", "float16"], "loss scaling of float16"),
        (["--skip-nonfinite"], "reads back each step"),
    ):
        graph, why = settled(*flags)
        assert not graph and reason in why


@pytest.mark.parametrize("graph", ["--graph", "--no-graph"])
def test_nonfinite_loss_on_gpu_stops_the_run(graph, device, tmp_path):
    """The next read of the loss raises. The epoch repeated from the state saved before the Inf has no NaN."""
    if device == "cpu" or not HAS_COMPILER:
        pytest.skip("of a GPU")
    model = models.create_model("vit_nano_cifar", depth=1).to(device)
    settings = parse(["--epochs", "2", "--batch-size", "2", "--device", device, graph, "--model-ema"])
    trainer = create_trainer(settings, model, shapes.load(20, 2))
    epochs = trainer.fit()
    history = [next(epochs)]
    info = info_of(trainer.dataset, settings)
    assert (trainer.step.graphed is not None) == (graph == "--graph")
    resume.save(tmp_path / "resume.npz", trainer, info, history)
    model.head.bias.data[0] = np.inf
    with pytest.raises(DivergedError, match=r"the loss became nan in or before step 10 of epoch 2/2; try a lower"):
        next(epochs)
    assert resume.repeat_with_checks(tmp_path / "resume.npz", trainer, info) == ""  # no NaN found


def test_repeated_epoch_names_the_first_nonfinite_op(device, tmp_path):
    if device == "cpu" or not HAS_COMPILER:
        pytest.skip("of a GPU")
    flags = ["--epochs", "2", "--batch-size", "2", "--device", device, "--lr", "1e4", "--clip-grad", "0"]
    model = models.create_model("vit_nano_cifar", depth=1).to(device)
    settings = parse(flags)
    trainer = create_trainer(settings, model, shapes.load(20, 2))
    info = info_of(trainer.dataset, settings)
    resume.save(tmp_path / "resume.npz", trainer, info, [])
    with pytest.raises(DivergedError, match="in or before step 10 of epoch 1/2; try"):
        next(trainer.fit())
    found = resume.repeat_with_checks(tmp_path / "resume.npz", trainer, info)
    said = (
        r"(the loss|a gradient) became .* in step [5-9] of epoch 1/2: \w+ \(in [\w.]+\) computed .*"
        r"(were|was) finite.*; try a "
    )
    assert re.match(said, found), found


# EMA ------------------------------------------------------------------------------------------------------------------


def test_ema_is_evaluated_and_does_not_change_training(dataset):
    """Training is the same as without EMA. Evaluation uses the EMA weights, which follow the formula."""
    plain, model = fit(dataset, threads=1)
    settings = replace(parse(["--epochs", "2", "--batch-size", "16"]), threads=1, model_ema=True, model_ema_decay=0.6)
    manual_seed(0)
    averaged = Small()
    trainer = create_trainer(settings, averaged, dataset)
    expected = {name: p.numpy().copy() for name, p in averaged.named_parameters()}
    step = trainer.advance

    def recorded_step(index):
        step(index)
        t = trainer.step.ema.updates - 1
        for name, p in averaged.named_parameters():
            expected[name] += (1 - min(0.6, (1 + t) / (10 + t))) * (p.numpy() - expected[name])

    trainer.advance = recorded_step
    epochs = list(trainer.fit())
    assert trainer.step.ema.updates == 8
    for ours, theirs in zip(epochs, plain, strict=True):
        assert ours.train_loss == theirs.train_loss and ours.test_loss != theirs.test_loss
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(averaged.state_dict()[name].numpy(), p.numpy())
    averaged.load_state_dict(expected)
    loss, _ = create_trainer(parse([]), averaged, dataset).evaluate()
    assert epochs[-1].test_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_checkpoint_round_trip(dataset, suffix, tmp_path):
    if suffix == "safetensors":
        pytest.importorskip("safetensors")
    settings = parse(["--train-num-samples", "60", "--epochs", "1"])
    manual_seed(0)
    model = models.create_model(**model_arguments(settings, dataset))
    metrics = Metrics(1, 1e-3, 2.0, 0.25, 2.1, 0.2, 1.0, 60.0)
    checkpoint.save(tmp_path / f"last.{suffix}", model, info_of(dataset, settings), metrics)
    loaded, metadata = models.weights.checkpoint.load(tmp_path / f"last.{suffix}")
    assert metadata["epoch"] == 1 and metadata["classes"] == list(shapes.FIGURES)
    assert metadata["test_acc"] == metrics.test_acc and metadata["settings"]["lr"] == settings.lr
    assert not loaded.training
    images = Tensor(normalize(dataset.test.images, metadata["mean"], metadata["std"]))
    with no_grad():
        np.testing.assert_array_equal(loaded(images).numpy(), model.eval()(images).numpy())


def test_evaluation_uses_mixed_precision(dataset):
    trainer = create_trainer(replace(parse([]), amp=True, threads=1), Small(), dataset)
    seen = []
    trainer.model.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype.name))
    trainer.evaluate()
    assert set(seen) == {"bfloat16"}
