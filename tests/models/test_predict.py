"""`python -m models.predict`: the table of predictions, and invalid input."""

import csv
import json
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


def test_folder_of_a_run_stands_for_its_best_checkpoint(folder, capsys):
    (folder / "run").mkdir()
    (folder / "vit.npz").rename(folder / "run" / "best.npz")
    write(folder / "run" / "last.npz", "swin")
    lines = []
    for name in ("run/best.npz", "run"):
        assert main([str(folder / name), str(folder / "images")]) == 0
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1]
    (folder / "run" / "best.safetensors").touch()
    assert main([str(folder / "run"), str(folder / "images")]) == 2
    assert "has both best.npz and best.safetensors: name the file" in capsys.readouterr().err


# CSV and JSON ---------------------------------------------------------------------------------------------------------

ODD = ["=1.png", 'a,b"c.png', "new\nline.png", "\r.png", "\x1b[31m.png", "ü.png"]


@pytest.fixture
def odd(folder):
    """The paths of images with odd names in the folder `odd`."""
    if sys.platform == "win32":
        pytest.skip("Windows allows no such names")
    (folder / "odd").mkdir()
    for name in ODD:
        (folder / "odd" / name).write_bytes((folder / "images" / "a.png").read_bytes())
    return [str(path) for path in sorted((folder / "odd").iterdir())]


def test_csv_and_json_have_the_paths_and_probabilities(folder, odd, capsys):
    flags = [str(folder / "vit.npz"), str(folder / "odd"), "--top-k", "2"]
    assert main([*flags, "--csv", str(folder / "p.csv"), "--json", str(folder / "p.JSON")]) == 0
    assert capsys.readouterr().out.count("  predictions for 6 images\n") == 2
    with open(folder / "p.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    found = json.loads((folder / "p.JSON").read_text())
    assert [row[0] for row in rows] == [image["image"] for image in found] == odd
    for (_, *cells), image in zip(rows, found, strict=True):
        pairs = [(p["class"], p["probability"]) for p in image["predictions"]]
        assert [(cells[0], float(cells[1])), (cells[2], float(cells[3]))] == pairs
        assert pairs[0][0] in CLASSES and 1 > pairs[0][1] > pairs[1][1] > 0
    for flag, name in (("--csv", "p.csv"), ("--json", "p.JSON")):
        assert main([*flags, flag, "-"]) == 0
        assert capsys.readouterr().out == (folder / name).read_bytes().decode()


def test_stdout_has_only_the_form_written_to_it(folder, capsys):
    flags = [str(folder / "vit.npz"), str(folder / "images"), "--csv", str(folder / "p.csv"), "--json", "-"]
    assert main(flags) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == len(list((folder / "images").iterdir()))
    assert "p.csv  predictions for" in err


def test_csv_of_an_undecodable_name_is_utf8(folder):
    name = os.fsdecode(b"\xff.png")
    try:
        (folder / name).write_bytes((folder / "images" / "a.png").read_bytes())
    except OSError:
        pytest.skip("the file system allows UTF-8 only")
    flags = [str(folder / "vit.npz"), str(folder / name)]
    assert main([*flags, "--csv", str(folder / "p.csv"), "--json", str(folder / "p.json")]) == 0
    assert "\\udcff.png" in (folder / "p.csv").read_text(encoding="utf-8")
    assert json.loads((folder / "p.json").read_text())[0]["image"] == str(folder / name)


def test_csv_on_a_terminal_escapes_unprintable_characters(folder, odd, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main([str(folder / "vit.npz"), str(folder / "odd"), "--csv", "-"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\\x1b[31m.png" in out


def test_csv_is_replaced_only_when_complete(folder, capsys, monkeypatch):
    (folder / "p.csv").write_text("earlier")

    def full(handle):
        raise OSError(28, "No space left on device", "p.csv")

    monkeypatch.setattr(os, "fsync", full)
    assert main([str(folder / "vit.npz"), str(folder / "images"), "--csv", str(folder / "p.csv")]) == 2
    assert (folder / "p.csv").read_text() == "earlier" and not list(folder.glob("*.part"))


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
        (["runs/vit", "images"], "there is no file runs/vit"),
        (["vit.pth", "images"], r"end in .npz or .safetensors, got 'vit.pth'"),
        (["vit.npz", "no.png"], "there is no file or folder no.png"),
        (["vit.npz", "empty"], "there are no images in the folder empty"),
        (["vit.npz", "vit.npz"], "vit.npz is not an image in a supported format"),
        (["vit.npz", "images", "--csv", "images/a.png"], "--csv writes a file that ends in .csv, or - for stdout; got"),
        (["vit.npz", "images", "--json", "x.csv"], "--json writes a file that ends in .json"),
        (["vit.npz", "images", "--csv", "none/x.csv"], "--csv none/x.csv: there is no folder none"),
        (["vit.npz", "images", "--csv", "folder.csv"], "--csv folder.csv is a folder: name a file"),
        (["vit.npz", "images", "--csv", "-", "--json", "-"], "would both be written to stdout"),
        (["images/a.png"], "images/a.png is an image: name a checkpoint before the images, or add --model vit_nano"),
        (["images", "vit.npz"], r"the folder images has no best.npz or best.safetensors, .*: name a checkpoint"),
        (["vit.npz", "cut.png"], "cut.png is a damaged or too large image.*; --skip-bad-images leaves out damaged"),
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
    (folder / "folder.csv").mkdir()
    Path("vit.pth").touch()
    serialize.save("foreign.npz", {"head.weight": np.zeros((3, 4))})
    for cut, source in (("cut.npz", "vit.npz"), ("cut.png", "images/a.png")):
        content = Path(source).read_bytes()
        Path(cut).write_bytes(content[: len(content) * 2 // 3])
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and re.search(f"^python -m models.predict: .*{message}", err), err


def test_skip_bad_images_lists_them_and_predicts_the_rest(folder, capsys):
    flags = [str(folder / "vit.npz"), str(folder / "images"), "--batch-size", "1"]
    assert main(flags) == 0
    expected = capsys.readouterr().out
    (folder / "images" / "0.png").write_text("text")
    (folder / "images" / "d.png").write_bytes((folder / "images" / "a.png").read_bytes()[:80])
    assert main([*flags, "--skip-bad-images"]) == 0
    out, err = capsys.readouterr()
    assert out == expected
    assert re.fullmatch(r"skipped  \S+0\.png is not an image in .*\nskipped  \S+d\.png is a damaged .*\n", err)
    assert main([flags[0], str(folder / "images" / "0.png"), "--skip-bad-images"]) == 2
    assert "no image of 1 can be read" in capsys.readouterr().err


def test_interruption_prints_one_line(folder, capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("models.predict.probabilities", interrupt)
    assert main([str(folder / "vit.npz"), str(folder / "images")]) == 130
    assert capsys.readouterr() == ("", "python -m models.predict: interrupted\n")


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
