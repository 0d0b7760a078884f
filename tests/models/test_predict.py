"""`python -m models.predict`: checkpoints and image files, good and bad, and the table."""

import io
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from minigrad import Tensor, no_grad, serialize
from minigrad import functional as F
from models import images
from models.images import normalize
from models.predict import main, one_line, probabilities
from models.weights import checkpoint
from tests.models.checkpoints import CLASSES, FAMILIES, METADATA, write, write_image
from train.__main__ import main as train

ROOT = Path(__file__).parents[2]
Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path):
    """vit.npz and 3 images."""
    write(tmp_path / "vit.npz", "vit")
    (tmp_path / "images").mkdir()
    for i, name in enumerate(["c.png", "a.png", "b.PNG"]):
        write_image(tmp_path / "images" / name, seed=i)
    return tmp_path


# The table ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_has_the_probabilities(family, tmp_path, capsys):
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


def test_what_train_wrote_is_read(tmp_path, capsys):
    few = ["--train-num-samples", "20", "--val-num-samples", "20", "--epochs", "1", "--output", str(tmp_path / "run")]
    assert train(few) == 0
    write_image(tmp_path / "x.png", (40, 30))
    capsys.readouterr()
    assert main([str(tmp_path / "run" / "last.npz"), str(tmp_path / "x.png")]) == 0
    shares = re.findall(r"([\d.]+) %", capsys.readouterr().out)
    assert len(shares) == 5 and sorted(map(float, shares), reverse=True) == list(map(float, shares))


def test_a_folder_is_its_images_by_name(folder, capsys):
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


def test_on_every_device(folder, device, capsys):
    assert main([str(folder / "vit.npz"), str(folder / "images")]) == 0
    expected = capsys.readouterr().out
    assert main([str(folder / "vit.npz"), str(folder / "images"), "--device", device]) == 0
    assert capsys.readouterr().out == expected


def test_safetensors_too(folder, capsys):
    pytest.importorskip("safetensors")
    write(folder / "vit.safetensors", "vit")
    lines = []
    for name in ("vit.npz", "vit.safetensors"):
        assert main([str(folder / name), str(folder / "images" / "a.png")]) == 0
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1]


def test_names_cannot_steer_the_terminal(folder, capsys):
    write(folder / "vit.npz", "vit", classes=["\x1b[31mred", *CLASSES[1:]])
    image = folder / "images" / "a\nb\x1b.png"
    image.write_bytes((folder / "images" / "a.png").read_bytes())
    assert main([str(folder / "vit.npz"), str(image), "--top-k", "7"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\\x1b[31mred" in out and "a\\nb\\x1b.png" in out and out.count("\n") == 2


# Mistakes -------------------------------------------------------------------------------------------------------------


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
        (["vit.npz", "vit.npz"], "vit.npz is no image that can be read here"),
        (["vit.npz", "cut.png"], "cut.png is a damaged or too large image"),
        (["vit.npz", "images/a.png", "cut.png"], "cut.png is a damaged or too large image"),
        (["vit.npz", "images", "--device", "tpu"], 'device must be "cpu", "cuda"'),
        (["cut.npz", "images"], "cut.npz is no complete npz file"),
        (
            ["foreign.npz", "images"],
            r"foreign.npz is no checkpoint of `python -m train`: .*load_weights\(model, file\)",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    serialize.save("foreign.npz", {"head.weight": np.zeros((3, 4))})
    for cut, whole in (("cut.npz", "vit.npz"), ("cut.png", "images/a.png")):
        content = Path(whole).read_bytes()
        Path(cut).write_bytes(content[: len(content) * 2 // 3])
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and re.search(f"^python -m models.predict: .*{message}", err), err


def test_as_a_program(folder):
    assert predict("vit.npz", "images", cwd=folder).stdout.count("%") == 15
    result = predict("vit.npz", "no.png", cwd=folder)
    assert result.returncode == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert predict("vit.npz", "images", "--top-k", "0", cwd=folder).returncode == 2


@pytest.mark.parametrize("arguments", [["models.predict", "images"], ["models.visualize", "--output", "out"]])
def test_a_reader_may_stop(arguments, folder):
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-W", "error", "-m", arguments[0], "vit.npz", *arguments[1:]]
    read, write_end = os.pipe()
    os.close(read)
    environment = {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=folder, env=environment, stdout=write_end, stderr=subprocess.PIPE, timeout=100)
    os.close(write_end)
    assert result.returncode == 0 and result.stderr == b""


def test_without_pillow(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert main([str(folder / "vit.npz"), str(folder / "images")]) == 2
    assert "needs Pillow: pip install pillow" in capsys.readouterr().err


def test_an_unreadable_file_is_named():
    assert one_line(PermissionError(13, "Permission denied", "x.png")) == "x.png: Permission denied"
    assert one_line(MemoryError()) == "MemoryError"


def test_a_model_without_an_answer(folder):
    model, metadata = checkpoint.load(folder / "vit.npz")
    pixels = np.zeros((1, 3, 32, 32), np.uint8)
    model.head.bias.data[2] = np.nan
    with pytest.raises(ValueError, match="are NaN"):
        probabilities(model, metadata, pixels)
    model.global_pool = ""
    with pytest.raises(ValueError, match="for each token"):
        probabilities(model, metadata, pixels)


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "no name of a model"),
        ({"model": {"name": ["vit"]}}, "no name of a model"),
        ({"model": {"name": "vit_nano_cifr"}}, "did you mean vit_nano_cifar"),
        ({"model": {"name": "vit_nano_cifar", "num_classes": 7, "depth": 2, "colour": 3}}, "no argument colour"),
        ({"model": {"name": "vit_nano_cifar", "num_classes": "7"}}, "num_classes must be an integer, at least 0"),
        ({"model": {"name": "vit_nano_cifar", "num_classes": 7, "depth": 3}}, r"'blocks.2.norm1.weight' is none"),
        ({"model": {"name": "vit_nano_cifar", "num_classes": 7, "depth": 1}}, r"'blocks.1.norm1.weight' is \(64,\)"),
        ({"model": {"name": "vit_nano_cifar", "num_classes": 7, "depth": 2, "embed_dim": 1 << 12}}, "'cls_token' is"),
        (
            {"model": {"name": "vit_nano_cifar", "num_classes": 7, "depth": 2, "embed_dim": 1 << 40}},
            "Unable to allocate",
        ),
        ({"model": {"name": "vit_nano_cifar", "num_classes": 7, "depth": 2, "embed_dim": 1 << 80}}, "no checkpoint"),
        ({"classes": CLASSES[1:]}, "6 classes for a model of 7"),
        ({"classes": [1, 2, 3, 4, 5, 6, 7]}, "no list of names"),
        ({"mean": [0.5]}, "its mean is not one finite number for each of 3 channels"),
        ({"mean": [0.5, "x", 0.5]}, "its mean is not"),
        ({"mean": [0.5, float("nan"), 0.5]}, "its mean is not"),
        ({"mean": [0.5, float("inf"), 0.5]}, "its mean is not"),
        ({"std": [0.5, 0.0, 0.5]}, "its std is not one finite number, above 0, for each"),
        ({"std": True}, "its std is not"),
    ],
)
def test_metadata_that_does_not_fit(changes, message, tmp_path):
    write(tmp_path / "best.npz", "vit", **changes)
    with pytest.raises(ValueError, match=f"best.npz .*{message}"):
        checkpoint.load(tmp_path / "best.npz")


@pytest.mark.parametrize("metadata", [None, [], "vit", {}, {"model": {}}])
def test_metadata_of_something_else(metadata, tmp_path):
    write(tmp_path / "vit.npz", "vit")
    with zipfile.ZipFile(tmp_path / "vit.npz") as whole, zipfile.ZipFile(tmp_path / "other.npz", "w") as other:
        for name in whole.namelist():
            if name != "__metadata__.npy":
                other.writestr(name, whole.read(name))
        with other.open("__metadata__.npy", "w") as file:
            np.lib.format.write_array(file, np.frombuffer(json.dumps(metadata).encode(), np.uint8))
    with pytest.raises(ValueError, match=r"is no checkpoint of `python -m train`"):
        checkpoint.load(tmp_path / "other.npz")


@pytest.mark.parametrize("values", [np.full((7, 64), "x"), np.zeros((7, 64), complex), np.zeros((7, 64), int)])
def test_weights_that_are_no_floats(values, tmp_path):
    model = write(tmp_path / "vit.npz", "vit")
    _, metadata = checkpoint.load(tmp_path / "vit.npz")
    serialize.save(tmp_path / "vit.npz", {**model.state_dict(), "head.weight": values}, metadata)
    with pytest.raises(
        ValueError, match=r"'head.weight' is \(7, 64\) of kind '[Uci]' in the file, .* 'f' in the model"
    ):
        checkpoint.load(tmp_path / "vit.npz")


def test_changed_bytes_give_an_error_or_a_model(tmp_path):
    write(tmp_path / "whole.npz", "vit")
    whole, rng = (tmp_path / "whole.npz").read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[-rng.integers(1, 6000)] ^= int(rng.integers(1, 256))  # where names and metadata are
        (tmp_path / "damaged.npz").write_bytes(damaged)
        try:
            checkpoint.load(tmp_path / "damaged.npz")
        except ValueError as error:
            assert "damaged.npz" in str(error)


# Image files ----------------------------------------------------------------------------------------------------------


def test_an_image_of_the_size_stays_as_it_is(tmp_path):
    pixels = write_image(tmp_path / "x.png", (24, 40))
    np.testing.assert_array_equal(images.read(tmp_path / "x.png", (24, 40), 3), pixels)


@pytest.mark.parametrize(("size", "channels"), [((20, 20), 3), ((10, 20), 3), ((20, 10), 1)])
def test_the_middle_is_cut_out(size, channels, tmp_path):
    """Of 40 x 80 with black to the left and right, or 80 x 40 with it above and below, the white middle remains."""
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 255
    for name, pixels in (("wide.png", wide), ("high.png", wide.transpose(1, 0, 2))):
        Image.fromarray(pixels).save(tmp_path / name)
    read = [images.read(tmp_path / name, (20, 20), channels) for name in ("wide.png", "high.png")]
    assert all(x.shape == (channels, 20, 20) and x.dtype == np.uint8 for x in read)
    assert all((x[:, 1:-1, 1:-1] == 255).all() for x in read)
    assert images.read(tmp_path / "wide.png", size, channels).shape == (channels, *size)


def test_kinds_of_images(tmp_path):
    """Transparent is white, 16 bits are 8, an animation is its first picture, turned by its metadata it is upright."""
    square = np.zeros((4, 4), np.uint8)
    square[0] = 200

    def read(image, name="x.png", **options):
        image.save(tmp_path / name, **options)
        return images.read(tmp_path / name, (4, 4), 3)

    assert (read(Image.new("RGBA", (4, 4), (0, 0, 0, 0))) == 255).all()
    assert (read(Image.new("RGBA", (4, 4), (0, 0, 0, 255))) == 0).all()
    assert (read(Image.fromarray(square))[:, 0] == 200).all()
    assert (read(Image.fromarray(square.astype(np.uint16) * 256 + 7))[:, 0] == 200).all()
    assert (read(Image.fromarray(square).convert("P"))[:, 0] == 200).all()
    assert (read(Image.fromarray(square).convert("1"), "x.pbm") == np.where(square, 255, 0)).all()
    frames = [Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 240)]
    assert (read(frames[0], "x.gif", save_all=True, append_images=frames[1:]) == 10).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # the right side of what is stored is the bottom of the picture
    assert (read(Image.fromarray(square), exif=exif)[:, :, -1] == 200).all()


RAMP = np.linspace(0, 1, 16).reshape(4, 4)


def tiff(values, bits, photometric=1, sample_format=1):
    """A TIFF file of one grey channel in `bits` bits, 4 x 4, little-endian; 12 bits are packed, two in three bytes."""
    if bits == 12:
        a, b = values.reshape(-1, 2).T
        values = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], axis=1).astype(np.uint8)
    data = values.tobytes()
    tags = {256: 4, 257: 4, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 4, 279: len(data)}
    entries = [struct.pack("<HHIHH", tag, 3, 1, v, 0) for tag, v in {**tags, 339: sample_format}.items()]
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    return header + data + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def encoded(image, kind):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


DEEP = (RAMP * 65535).astype(np.uint16)
GREY_OF_MORE_BITS = {
    "16-bit PNG": encoded(Image.fromarray(DEEP), "PNG"),
    "16-bit TIFF": encoded(Image.fromarray(DEEP), "TIFF"),
    "16-bit TIFF, big-endian": encoded(Image.fromarray(DEEP.astype(">u2")), "TIFF"),
    "16-bit TIFF, white is 0": tiff(65535 - DEEP, 16, photometric=0),
    "12-bit TIFF": tiff(DEEP >> 4, 12),
    "16-bit PGM": b"P5 4 4 65535 " + DEEP.astype(">u2").tobytes(),
    "12-bit PGM": b"P5 4 4 4095 " + (DEEP >> 4).astype(">u2").tobytes(),
    "PGM in ASCII": b"P2 4 4 65535 " + " ".join(map(str, DEEP.ravel())).encode(),
    "float TIFF": tiff(RAMP.astype(np.float32), 32, sample_format=3),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", GREY_OF_MORE_BITS)
def test_grey_of_more_than_8_bits_is_scaled(kind, channels, tmp_path):
    (tmp_path / "x").write_bytes(GREY_OF_MORE_BITS[kind])
    pixels = images.read(tmp_path / "x", (4, 4), channels)
    np.testing.assert_array_less(abs(pixels - 255 * RAMP), 1.01)
    assert (pixels[:, 0, 0] == 0).all() and (pixels[:, -1, -1] == 255).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(Image.fromarray((RAMP * 65535).astype(np.int32)), "TIFF"), "integers of another type than 8 or 16"),
        (tiff((RAMP * 2**32).clip(0, 2**32 - 1).astype(np.uint32), 32), "integers of another type than 8 or 16"),
        (tiff((RAMP * 32767).astype(np.int16), 16, sample_format=2), "integers of another type than 8 or 16"),
        (encoded(Image.fromarray((RAMP * 255).astype(np.float32)), "TIFF"), "floating-point values from 0 to 255, not"),
        (encoded(Image.fromarray((RAMP - 0.5).astype(np.float32)), "TIFF"), "floating-point values from -0.5 to 0.5"),
        (encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "floating-point values from nan to"),
    ],
)
def test_an_unknown_white_is_refused(content, message, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=f"x has {message}.*; save it with 8 or 16 bits a channel"):
        images.read(tmp_path / "x", (4, 4), 3)


def test_transparent_grey_of_16_bits_is_white(tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "x.png", transparency=int(DEEP[0, 1]))
    pixels = images.read(tmp_path / "x.png", (4, 4), 1)
    assert pixels[0, 0, :3].tolist() == [0, 255, DEEP[0, 2] >> 8]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", "tif"), ("CMYK", "jpg"), ("LAB", "tif"), ("PA", "tif"), ("LA", "png")]
)
def test_other_colour_spaces_are_converted(mode, suffix, channels, tmp_path):
    image = Image.new(mode, (4, 4), {"CMYK": (0, 0, 0, 0), "LAB": (255, 128, 128)}.get(mode, 0))  # white
    image.save(tmp_path / f"x.{suffix}")
    assert (images.read(tmp_path / f"x.{suffix}", (4, 4), channels) >= 254).all()


def test_a_palette_may_be_transparent(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(1, (0, 0, 2, 4))
    image.save(tmp_path / "x.png", transparency=1)
    pixels = images.read(tmp_path / "x.png", (4, 4), 3)
    assert (pixels[:, :, :2] == 255).all() and (pixels[:, :, 2:] == np.array([10, 20, 30])[:, None, None]).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_damaged_images_are_named_and_nothing_else_happens(suffix, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(pixels).save(path)
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    assert images.read(path, (16, 16), 3).shape == (3, 16, 16)
    for trial in range(60):
        damaged = bytearray(whole)
        if trial % 2:
            damaged[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        else:
            damaged = damaged[: rng.integers(len(whole))]
        path.write_bytes(damaged)
        try:
            assert images.read(path, (16, 16), 3).shape == (3, 16, 16)
        except ValueError as error:
            assert f"x.{suffix} is " in str(error)


def test_formats_that_run_programs_are_not_opened(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(ValueError, match="no image that can be read here"):
        images.read(path, (4, 4), 3)


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    write_image(tmp_path / "x.png", (11, 11))
    with pytest.raises(ValueError, match="damaged or too large"):
        images.read(tmp_path / "x.png", (4, 4), 3)


def test_other_channels_are_explained(tmp_path):
    with pytest.raises(ValueError, match="this model takes 4"):
        images.read(tmp_path / "x.png", (4, 4), 4)
