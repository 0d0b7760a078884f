"""`python -m models.predict`: the table of predictions, and invalid input."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minigrad import Tensor, no_grad, serialize
from minigrad import functional as F
from models.images import normalize
from models.predict import main, one_line, probabilities
from models.weights import checkpoint
from tests.models.checkpoints import CLASSES, FAMILIES, METADATA, write, write_image
from train.__main__ import main as train

ROOT = Path(__file__).parents[2]
pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path):
    """A folder with vit.npz and 3 images."""
    write(tmp_path / "vit.npz", "vit")
    (tmp_path / "images").mkdir()
    for i, name in enumerate(["c.png", "a.png", "b.PNG"]):
        write_image(tmp_path / "images" / name, seed=i)
    return tmp_path


# The table ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_table_has_the_probabilities(family, tmp_path, capsys):
    model = write(tmp_path / "best.npz", family)
    pixels = np.stack([write_image(tmp_path / f"{i}.png", model.img_size, seed=i) for i in range(3)])
    with no_grad():
        inputs = Tensor(normalize(pixels, METADATA["mean"], METADATA["std"]).astype(np.float32))
        expected = F.softmax(model(inputs), dim=-1).numpy()
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    assert main([str(tmp_path / "best.npz"), *files, "--top-k", "3", "--batch-size", "2"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["image", "1", "2", "3"] and len(lines) == 3
    for file, line, answer in zip(files, lines, expected, strict=True):
        cells = re.split(r"  +", line)
        best = answer.argsort()[::-1][:3]
        assert cells == [file, *(cell for i in best for cell in (CLASSES[i], f"{100 * answer[i]:.1f} %"))]


def test_checkpoint_of_train_is_loaded(tmp_path, capsys):
    few = ["--train-num-samples", "20", "--val-num-samples", "20", "--epochs", "1", "--output", str(tmp_path / "run")]
    assert train(few) == 0
    write_image(tmp_path / "x.png", (40, 30))
    capsys.readouterr()
    assert main([str(tmp_path / "run" / "last.npz"), str(tmp_path / "x.png")]) == 0
    shares = re.findall(r"([\d.]+) %", capsys.readouterr().out)
    assert len(shares) == 3 and sorted(map(float, shares), reverse=True) == list(map(float, shares))


def test_folder_stands_for_its_images_sorted_by_name(folder, capsys):
    (folder / "images" / "notes.txt").write_text("not an image")
    (folder / "images" / "below.png").mkdir()
    write_image(folder / "images" / "below.png" / "d.png")
    for hidden in ("._a.png", ".DS_Store", ".ipynb_checkpoints/a.png"):
        (folder / "images" / hidden).parent.mkdir(exist_ok=True)
        (folder / "images" / hidden).write_bytes(b"no image")
    assert main([str(folder / "vit.npz"), str(folder / "images"), "--top-k", "99"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert [Path(line.split()[0]).name for line in lines] == ["a.png", "b.PNG", "c.png", "d.png"]
    assert header.split() == ["image", *map(str, range(1, 1 + len(CLASSES)))]


def test_devices_agree(folder, device, capsys):
    assert main([str(folder / "vit.npz"), str(folder / "images")]) == 0
    expected = capsys.readouterr().out
    assert main([str(folder / "vit.npz"), str(folder / "images"), "--device", device]) == 0
    assert capsys.readouterr().out == expected


def test_safetensors_and_npz_agree(folder, capsys):
    pytest.importorskip("safetensors")
    write(folder / "vit.safetensors", "vit")
    lines = []
    for name in ("vit.npz", "vit.safetensors"):
        assert main([str(folder / name), str(folder / "images" / "a.png")]) == 0
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1]


def test_unprintable_characters_are_escaped(folder, capsys):
    write(folder / "vit.npz", "vit", classes=["\x1b[31mred", *CLASSES[1:]])
    image = folder / "images" / "a\nb\x1b.png"
    image.write_bytes((folder / "images" / "a.png").read_bytes())
    assert main([str(folder / "vit.npz"), str(image), "--top-k", "7"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\\x1b[31mred" in out and "a\\nb\\x1b.png" in out and out.count("\n") == 2


# Invalid input --------------------------------------------------------------------------------------------------------


def predict(*arguments, cwd):
    command = [sys.executable, "-W", "error", "-m", "models.predict", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100)


def test_help_needs_no_pillow():
    code = "import sys, models.predict as m; m.parser().format_help(); sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.npz", "images"], "there is no file no.npz"),
        (["vit.pth", "images"], r"end in .npz or .safetensors, got 'vit.pth'"),
        (["vit.npz", "no.png"], "there is no file or folder no.png"),
        (["vit.npz", "empty"], "there are no images in the folder empty"),
        (["vit.npz", "vit.npz"], "vit.npz is not an image in a supported format"),
        (["vit.npz", "cut.png"], "cut.png is a damaged or too large image"),
        (["vit.npz", "images/a.png", "cut.png"], "cut.png is a damaged or too large image"),
        (["vit.npz", "images", "--device", "tpu"], 'device must be "cpu", "cuda"'),
        (["cut.npz", "images"], "cut.npz is not a complete npz file"),
        (
            ["foreign.npz", "images"],
            r"foreign.npz is not a checkpoint of `python -m train`: .*load_weights\(model, file\)",
        ),
    ],
)
def test_invalid_input_prints_one_line_and_exits_with_2(arguments, message, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    serialize.save("foreign.npz", {"head.weight": np.zeros((3, 4))})
    for cut, source in (("cut.npz", "vit.npz"), ("cut.png", "images/a.png")):
        content = Path(source).read_bytes()
        Path(cut).write_bytes(content[: len(content) * 2 // 3])
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and re.search(f"^python -m models.predict: .*{message}", err), err


def test_runs_as_a_program(folder):
    assert predict("vit.npz", "images", cwd=folder).stdout.count("%") == 9
    result = predict("vit.npz", "no.png", cwd=folder)
    assert result.returncode == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert predict("vit.npz", "images", "--top-k", "0", cwd=folder).returncode == 2


@pytest.mark.parametrize("arguments", [["models.predict", "images"], ["models.visualize", "--output", "out"]])
def test_closed_pipe_is_not_an_error(arguments, folder):
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-W", "error", "-m", arguments[0], "vit.npz", *arguments[1:]]
    read, write_end = os.pipe()
    os.close(read)
    environment = {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=folder, env=environment, stdout=write_end, stderr=subprocess.PIPE, timeout=100)
    os.close(write_end)
    assert result.returncode == 0 and result.stderr == b""


def test_missing_pillow_is_explained(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert main([str(folder / "vit.npz"), str(folder / "images")]) == 2
    assert "needs Pillow: pip install pillow" in capsys.readouterr().err


def test_one_line_of_an_error_names_file_or_type():
    assert one_line(PermissionError(13, "Permission denied", "x.png")) == "x.png: Permission denied"
    assert one_line(MemoryError()) == "MemoryError"


def test_nan_and_missing_pooling_are_refused(folder):
    model, metadata = checkpoint.load(folder / "vit.npz")
    pixels = np.zeros((1, 3, 32, 32), np.uint8)
    model.head.bias.data[2] = np.nan
    with pytest.raises(ValueError, match="are NaN"):
        probabilities(model, metadata, pixels)
    model.global_pool = ""
    with pytest.raises(ValueError, match="for each token"):
        probabilities(model, metadata, pixels)
