"""`--initial-checkpoint`: which weights are loaded, and which files are refused."""

import re
import shutil

import numpy as np
import pytest

import models
from minigrad import serialize
from tests.models import foreign
from tests.train.command import rows, train
from tests.train.small import FLAGS
from train import __main__, initial, run

pytestmark = pytest.mark.usefixtures("no_pictures")
STILL = ["--lr", "1e-30", "--warmup-epochs", "0", "--weight-decay", "0"]


def main(*flags):
    return __main__.main([*FLAGS, "--epochs", "1", *map(str, flags)])


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """The folder of a run on the dataset `shapes`."""
    folder = tmp_path_factory.mktemp("earlier") / "run"
    assert main("--output", folder) == 0
    return folder


@pytest.fixture
def album(tmp_path):
    """A folder of images of three classes, 48 x 48."""
    Image = pytest.importorskip("PIL.Image")
    for i, name in enumerate(["blue", "green", "red"]):
        for split in ("train", "val"):
            (tmp_path / "album" / split / name).mkdir(parents=True)
            for j in range(2):
                pixels = np.full((48, 48, 3), 40 + 10 * j, np.uint8)
                pixels[..., 2 - i] += 100
                Image.fromarray(pixels).save(tmp_path / "album" / split / name / f"{j}.png")
    return ["--dataset", "folder", "--data-dir", tmp_path / "album"]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_initial_checkpoint_gives_the_same_loss(earlier, tmp_path, capsys, suffix):
    """With learning rate 1e-30 the test loss is that of the earlier run."""
    file = earlier / "last.npz"
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
        serialize.save(file := tmp_path / "last.safetensors", *serialize.load(earlier / "last.npz"))
    assert main("--initial-checkpoint", file, *STILL, "--seed", 1, "--output", tmp_path / "out") == 0
    (before,), (after,) = rows(earlier), rows(tmp_path / "out")
    assert after["test_loss"] == before["test_loss"]
    assert f"\nweights  {file}\n" in capsys.readouterr().out


def test_ema_starts_from_the_initial_checkpoint(earlier, tmp_path):
    flags = ["--initial-checkpoint", earlier / "last.npz", *STILL, "--model-ema", "--output", tmp_path / "out"]
    assert main(*flags) == 0
    assert rows(tmp_path / "out")[0]["test_loss"] == rows(earlier)[0]["test_loss"]


def test_new_head_for_another_number_of_classes(earlier, album, tmp_path, capsys):
    """All parameters except the head come from the best checkpoint of the run; the head is initialised to 0."""
    assert main(*album, *STILL, "--initial-checkpoint", earlier, "--output", tmp_path / "out") == 0
    said = f"weights  {earlier / 'best.npz'}; new head: 10 classes in the file, 3 in the data"
    assert capsys.readouterr().out.splitlines().count(said) == 1
    there, here = (serialize.load(folder / "best.npz")[0] for folder in (earlier, tmp_path / "out"))
    assert here["head.weight"].shape == (3, 64) and abs(here["head.weight"]).max() < 1e-20
    for name in here.keys() - {"head.weight", "head.bias"}:
        np.testing.assert_array_equal(here[name], there[name], err_msg=name)
    assert f'initial_checkpoint = "{earlier}"' in (tmp_path / "out" / "args.toml").read_text()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_new_head_for_other_class_names(earlier, tmp_path, suffix):
    """If the class names in the checkpoint differ from the data's, the head stays as initialised."""
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    arrays, metadata = serialize.load(earlier / "best.npz")
    serialize.save(file := tmp_path / f"file{suffix}", arrays, metadata)
    classes, model = metadata["classes"], models.create_model("vit_nano_cifar")
    drawn = model.head.weight.numpy().copy()
    said = initial.load(str(file), model, "vit_nano_cifar", [*classes[:-1], "another"])
    assert said.endswith("; new head: 10 classes in the file, 10 others in the data")
    np.testing.assert_array_equal(model.head.weight.numpy(), drawn)
    assert initial.load(str(file), model, "vit_nano_cifar", classes) == f"weights  {file}"
    assert (model.head.weight.numpy() != drawn).any()


def test_foreign_weights_at_another_image_size(album, tmp_path, capsys):
    """Names are torchvision's or Hugging Face's; position embeddings are resampled from 32 x 32 to 48 x 48."""
    source = models.create_model("vit_nano_cifar", num_classes=5)
    for i, names in enumerate([foreign.torchvision_vit, foreign.hugging_face_vit]):
        file, out = tmp_path / f"{i}.npz", tmp_path / f"out{i}"
        serialize.save(file, foreign.written(source, names))
        flags = [*album, "--img-size", 48, "--layer-decay", 0.5, *STILL, "--initial-checkpoint", file, "--output", out]
        assert main(*flags) == 0
        said = "new head: 5 classes in the file, 3 in the data; positions resampled (pos_embed)"
        assert f"\nweights  {file}; {said}\n" in capsys.readouterr().out
        found, _ = serialize.load(out / "last.npz")
        for name, x in source.state_dict().items():
            if name != "pos_embed" and not name.startswith("head."):
                np.testing.assert_array_equal(found[name], x.numpy().astype(np.float32), err_msg=name)
        assert found["pos_embed"].shape == (1, 1 + 12 * 12, 64)


def test_timm_swin_weights_without_a_head(tmp_path):
    """timm names Swin's parameters differently. Without a head in the file, the head stays as initialised."""
    source, model = (models.create_model("swin_nano_cifar") for _ in range(2))
    entries = foreign.written(source, foreign.timm_swin)
    serialize.save(tmp_path / "w.npz", {name: x for name, x in entries.items() if not name.startswith("head")})
    drawn = model.head.weight.numpy().copy()
    said = initial.load(str(tmp_path / "w.npz"), model, "swin_nano_cifar", "abcdefghij")
    assert said == f"weights  {tmp_path / 'w.npz'}; new head: no head in the file, 10 in the data"
    np.testing.assert_array_equal(model.head.weight.numpy(), drawn)
    for name in model.state_dict().keys() - {"head.weight", "head.bias"}:
        np.testing.assert_array_equal(
            model.state_dict()[name].numpy(), source.state_dict()[name].numpy().astype(np.float32)
        )


def test_resume_needs_no_initial_checkpoint(earlier, tmp_path, capsys):
    """A resumed run takes its weights from its state."""
    shutil.copy(earlier / "best.npz", tmp_path / "file.npz")
    flags = ["--initial-checkpoint", tmp_path / "file.npz", "--epochs", 2, "--output", tmp_path / "out"]

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "fit", interrupted)
        assert main(*flags) == 130
    (tmp_path / "file.npz").unlink()
    assert main(*flags, "--resume", "auto") == 0
    assert "weights" not in capsys.readouterr().out.partition("resume ")[2]
    shutil.copy(earlier / "best.npz", tmp_path / "file.npz")
    assert main(*flags[:-1], tmp_path / "whole") == 0
    for name, x in serialize.load(tmp_path / "whole" / "last.npz")[0].items():
        np.testing.assert_array_equal(serialize.load(tmp_path / "out" / "last.npz")[0][name], x)


# Files that are refused -----------------------------------------------------------------------------------------------


def refused(capsys, tmp_path, file, *flags):
    """The error line. Checks that nothing else is printed or written."""
    before = {tmp_path, *tmp_path.rglob("*")}
    assert main("--initial-checkpoint", file, *flags, "--output", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and len(err) < 700
    assert err.startswith(f"python -m train: --initial-checkpoint {file}"), err
    assert {tmp_path, *tmp_path.rglob("*")} == before
    return err


def altered(earlier, file, change):
    arrays, metadata = serialize.load(earlier / "best.npz")
    change(arrays)
    serialize.save(file, arrays, metadata)
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("norm.bias"), r"1 missing \(norm.bias\); the file must have the same arch"),
        (lambda x: x.update(gate=np.ones(3)), r"1 unexpected \(gate\); the file must"),
        (
            lambda x: x.update({"norm.bias": np.ones(5)}),
            r"1 shape mismatch \(norm.bias, \(5,\) in the file and \(64,\) in the model\)",
        ),
        (lambda x: x.update({"norm.bias": np.ones(64, int)}), r"1 int64 \(norm.bias"),
        (lambda x: x.update(pos_embed=np.ones((1, 8, 64))), r"resampled from a square grid or window only"),
        (lambda x: x.clear(), r"\d+ missing \(cls_token, ...\)"),
        (
            lambda x: x.update({"norm.bias": np.full(64, np.nan)}),
            "norm.bias has NaN or Inf in float32",
        ),
        (lambda x: x.update({"norm.bias": np.full(64, 1e300)}), "norm.bias: float64 with values that float32 cannot"),
    ],
)
def test_mismatched_weights_are_refused(earlier, tmp_path, capsys, change, message):
    file = altered(earlier, tmp_path / "file.npz", change)
    assert re.search(message, refused(capsys, tmp_path, file))


def test_weights_of_another_model_suggest_its_name(earlier, tmp_path, capsys):
    line = refused(capsys, tmp_path, earlier / "best.npz", "--model", "convnext_atto_cifar")
    assert "does not fit --model convnext_atto_cifar: " in line
    assert "unexpected" in line and "missing" in line and "look like those of --model vit_nano_cifar" in line


def test_invalid_weight_files_are_refused(earlier, tmp_path, capsys):
    whole = (earlier / "best.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pickle.pth").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "proof").encode() + b"'\ntR.")
    (tmp_path / "text.safetensors").write_text("no weights")
    np.savez(tmp_path / "objects.npz", a=np.array([print], object))
    for name, message in [
        ("missing.npz", "there is no file"),
        ("", "the folder .* has no best.npz or best.safetensors"),
        ("cut.npz", "is not a complete npz file"),
        ("objects.npz", "Object arrays cannot be loaded"),
        ("text.safetensors", "is not a complete safetensors file|needs its library"),
        ("pickle.pth", "is damaged, or holds objects that could run code|needs torch"),
    ]:
        assert re.search(message, refused(capsys, tmp_path, tmp_path / name)), name


def test_run_state_is_refused_as_weights(earlier, tmp_path, capsys):
    line = refused(capsys, tmp_path, earlier / "resume.npz")
    assert "is the state of a run; its models are the files best and last in the same folder" in line


def test_initial_checkpoint_from_the_command_line(earlier, tmp_path):
    """A valid file gives no warning; an invalid file gives one line, not a traceback."""
    result = train(*FLAGS, "--epochs", 1, "--initial-checkpoint", earlier / "best.npz", "--output", "out", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "") and "\nweights  " in result.stdout
    result = train(*FLAGS, "--epochs", 1, "--initial-checkpoint", "none.npz", "--output", "no", cwd=tmp_path)
    assert (
        result.returncode == 2
        and result.stderr == "python -m train: --initial-checkpoint none.npz: there is no file none.npz\n"
    )
