"""A resumed run equals an uninterrupted run."""

import numpy as np
import pytest

import models
from minigrad import manual_seed, serialize
from tests.cuda.runner import HAS_COMPILER
from tests.train.small import Small, finish, info_of, interrupted, trainer_of
from train.__main__ import parse
from train.data import shapes
from train.loop import Stopped
from train.output import naming, resume

AUGMENTED = ["--hflip", "0.5", "--crop-padding", "4", "--aa", "rand-m9-mstd0.5", "--reprob", "0.25"]
AUGMENTED += ["--mixup", "0.8", "--cutmix", "1", "--aug-repeats", "2"]


def residual():
    return models.create_model("roadmap_00_resnet50_cifar")


def hidden():
    return models.create_model("vit_nano_cifar", depth=1)


class Fragile(Small):
    """Returns Inf or NaN in training if the batch has an image of mean above 0.6."""

    def forward(self, x):
        logits = super().forward(x)
        return logits * np.inf if self.training and x.data.mean((1, 2, 3)).max() > 0.6 else logits


@pytest.mark.parametrize(
    ("flags", "model", "stops"),
    [
        (["--threads", "1"], Small, range(1, 8)),
        (["--threads", "2", *AUGMENTED], Small, [1, 3, 4, 6]),
        (["--model-ema", "--model-ema-decay", "0.7"], Small, [3, 4, 7]),
        (["--batch-size", "8", "--grad-accum-steps", "2"], Small, [3]),
        (["--amp", "--amp-dtype", "float16"], Small, [3]),
        (["--skip-nonfinite", "--threads", "1"], Fragile, range(1, 8)),
        (["--batch-size", "20"], residual, [2]),
        (["--opt", "sgd", "--threads", "2", *AUGMENTED, "--color-jitter", "0.4"], Small, [3, 6]),
        (["--opt", "sgd", "--momentum", "0", "--batch-size", "20"], residual, [2]),
        (["--opt", "adam", "--weight-decay", "0.1"], Small, [3, 6]),
        (["--opt", "muon", "--threads", "1"], hidden, range(1, 8)),
        (["--opt", "muon", "--threads", "2", "--model-ema", *AUGMENTED], hidden, [3, 6]),
    ],
    ids=[
        *("plain", "random", "average", "accumulated", "scaled", "skipped", "buffers"),
        *("sgd", "sgd without momentum", "adam", "muon", "muon and all"),
    ],
)
def test_resumed_run_equals_the_uninterrupted_run(dataset, flags, model, stops, tmp_path):
    settings = parse(["--epochs", "2", "--batch-size", "16", *flags])
    info = info_of(dataset, settings)
    expected, weights = finish(trainer_of(dataset, settings, model))
    assert [row["skipped"] for row in expected[:2]] == [model is Fragile] * 2
    for steps in stops:
        path = tmp_path / naming.STATE
        interrupted(trainer_of(dataset, settings, model), steps, path, info)
        manual_seed(99)  # the result does not depend on the global seed
        again = trainer_of(dataset, settings, model)
        history = resume.load(path, again, info)
        assert (again.epoch, again.position) == divmod(steps, again.steps) or again.position == again.steps
        found, weights_again = finish(again, history)
        assert found == expected
        for name, value in weights.items():
            np.testing.assert_array_equal(weights_again[name].numpy(), value.numpy(), err_msg=f"{name}, {steps}")


def test_names_in_a_state_file(dataset, tmp_path):
    """If these names change, earlier runs cannot be resumed."""
    settings, path = parse(["--batch-size", "16", "--threads", "2", "--model-ema"]), tmp_path / naming.STATE
    info = info_of(dataset, settings)
    interrupted(trainer_of(dataset, settings), 3, path, info)
    arrays, metadata = serialize.load(path)
    weights = {"pos_embed", "conv.weight", "conv.bias", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    expected = {f"{part}/{name}" for part in ("model", "ema") for name in weights}
    expected |= {f"optimizer/{g}.{name}" for g in (0, 1) for name in ("lr", "initial_lr", "has_state")}
    parameters = ["0.0", "0.1", "0.2", "0.3", "0.4", "1.0", "1.1"]
    expected |= {f"optimizer/{parameter}.{name}" for parameter in parameters for name in ("step", "m", "v")}
    expected |= {"ema/updates", "schedule/t", "scaler/scale", "scaler/good_steps", "sums", "order"}
    progress = {"finished", "position", "lr", "seconds", "skipped", "draws", "data"}
    assert set(arrays) == expected and set(metadata) == {"resume", "settings", "history", *progress}
    assert metadata["resume"] == 1 and metadata["position"] == 3 and len(metadata["draws"]) == 2
    resume.finish(path, info, [])
    arrays, metadata = serialize.load(path)
    assert not arrays and set(metadata) == {"resume", "settings", "history", "finished"} and resume.is_finished(path)


def test_resume_reads_states_without_initial_lr(dataset, tmp_path):
    settings, path = parse(["--epochs", "2", "--batch-size", "16", "--threads", "1"]), tmp_path / naming.STATE
    info = info_of(dataset, settings)
    expected, _ = finish(trainer_of(dataset, settings))
    interrupted(trainer_of(dataset, settings), 3, path, info)
    arrays, metadata = serialize.load(path)
    older = {name: x for name, x in arrays.items() if not name.endswith((".has_state", ".initial_lr"))}
    assert len(older) == len(arrays) - 4
    serialize.save(path, older, metadata)
    again = trainer_of(dataset, settings)
    assert finish(again, resume.load(path, again, info))[0] == expected


def test_resume_after_every_step(dataset, tmp_path):
    """A new trainer resumes the run before each step."""
    settings = parse(["--epochs", "2", "--batch-size", "16", "--threads", "2", *AUGMENTED])
    path, info = tmp_path / naming.STATE, info_of(dataset, settings)
    expected, weights = finish(trainer_of(dataset, settings))
    trainer = trainer_of(dataset, settings)
    for step in range(1, 8):
        history = resume.load(path, trainer, info) if path.exists() else []
        interrupted(trainer, step, path, info, history)
        trainer = trainer_of(dataset, settings)
    found, weights_again = finish(trainer, resume.load(path, trainer, info))
    assert found == expected
    for name, value in weights.items():
        np.testing.assert_array_equal(weights_again[name].numpy(), value.numpy())


@pytest.mark.parametrize("steps", range(1, 7))
def test_cuda_graph_is_captured_for_full_steps_only(steps, device, tmp_path):
    """The run may resume at any step, also at the smaller last step of an epoch."""
    if device == "cpu" or not HAS_COMPILER:
        pytest.skip("graphs are CUDA's")
    settings = parse(["--epochs", "2", "--batch-size", "4", "--device", device, "--graph"])
    data, path = shapes.load(22, 2), tmp_path / naming.STATE
    info = info_of(data, settings)
    interrupted(trainer_of(data, settings), steps, path, info)
    again = trainer_of(data, settings)
    finish(again, resume.load(path, again, info))
    graphed = again.step.graphed
    assert graphed.graph is not None and graphed.kinds == [((4,), np.int64)]


def test_stop_during_evaluation(dataset, tmp_path):
    settings, path = parse(["--epochs", "1", "--batch-size", "30", "--validation-batch-size", "5"]), tmp_path / "r.npz"
    info = info_of(dataset, settings)
    expected, _ = finish(trainer_of(dataset, settings))
    trainer, seen = trainer_of(dataset, settings), []

    def record(model, inputs, output):
        seen.append(model.training)
        if seen.count(False) == 2:
            trainer.stop.set()

    trainer.model.register_forward_hook(record)
    with pytest.raises(Stopped):
        list(trainer.fit())
    assert trainer.position == trainer.steps and seen.count(False) < 20
    resume.save(path, trainer, info, [])
    again = trainer_of(dataset, settings)
    assert finish(again, resume.load(path, again, info))[0] == expected
