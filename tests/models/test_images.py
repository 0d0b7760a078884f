"""Image files: formats, bit depths, colour spaces, transparency, and damaged files."""

import io
import struct

import numpy as np
import pytest

from models import images
from tests.models.checkpoints import write_image

Image = pytest.importorskip("PIL.Image")


def test_image_of_the_input_size_is_unchanged(tmp_path):
    pixels = write_image(tmp_path / "x.png", (24, 40))
    np.testing.assert_array_equal(images.read(tmp_path / "x.png", (24, 40), 3), pixels)


@pytest.mark.parametrize(("size", "channels"), [((20, 20), 3), ((10, 20), 3), ((20, 10), 1)])
def test_images_are_center_cropped(size, channels, tmp_path):
    """An image with a white center and black margins, left and right or above and below, is cropped to the center."""
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 255
    for name, pixels in (("wide.png", wide), ("high.png", wide.transpose(1, 0, 2))):
        Image.fromarray(pixels).save(tmp_path / name)
    read = [images.read(tmp_path / name, (20, 20), channels) for name in ("wide.png", "high.png")]
    assert all(x.shape == (channels, 20, 20) and x.dtype == np.uint8 for x in read)
    assert all((x[:, 1:-1, 1:-1] == 255).all() for x in read)
    assert images.read(tmp_path / "wide.png", size, channels).shape == (channels, *size)


def test_image_modes_are_converted(tmp_path):
    """Transparency becomes white, 16 bits become 8, an animation gives the first frame, EXIF orientation is applied."""
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
    exif[0x0112] = 6  # rotated: the first stored row is the right column
    assert (read(Image.fromarray(square), exif=exif)[:, :, -1] == 200).all()


RAMP = np.linspace(0, 1, 16).reshape(4, 4)


def tiff(values, bits, photometric=1, sample_format=1):
    """A little-endian 4 x 4 greyscale TIFF file with `bits` bits; 12-bit values are packed, two in three bytes."""
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
DEEP_GREYSCALE = {
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
@pytest.mark.parametrize("kind", DEEP_GREYSCALE)
def test_greyscale_of_more_than_8_bits_is_scaled(kind, channels, tmp_path):
    (tmp_path / "x").write_bytes(DEEP_GREYSCALE[kind])
    pixels = images.read(tmp_path / "x", (4, 4), channels)
    np.testing.assert_array_less(abs(pixels - 255 * RAMP), 1.01)
    assert (pixels[:, 0, 0] == 0).all() and (pixels[:, -1, -1] == 255).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(Image.fromarray((RAMP * 65535).astype(np.int32)), "TIFF"), "integers other than unsigned 8 or 16"),
        (tiff((RAMP * 2**32).clip(0, 2**32 - 1).astype(np.uint32), 32), "integers other than unsigned 8 or 16"),
        (tiff((RAMP * 32767).astype(np.int16), 16, sample_format=2), "integers other than unsigned 8 or 16"),
        (encoded(Image.fromarray((RAMP * 255).astype(np.float32)), "TIFF"), "floating-point values from 0 to 255, not"),
        (encoded(Image.fromarray((RAMP - 0.5).astype(np.float32)), "TIFF"), "floating-point values from -0.5 to 0.5"),
        (encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "floating-point values from nan to"),
    ],
)
def test_values_of_unknown_range_are_refused(content, message, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=f"x has {message}.*; save the image with 8 or 16 bits per channel"):
        images.read(tmp_path / "x", (4, 4), 3)


def test_transparent_16_bit_greyscale_becomes_white(tmp_path):
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


def test_transparent_palette_colour_becomes_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(1, (0, 0, 2, 4))
    image.save(tmp_path / "x.png", transparency=1)
    pixels = images.read(tmp_path / "x.png", (4, 4), 3)
    assert (pixels[:, :, :2] == 255).all() and (pixels[:, :, 2:] == np.array([10, 20, 30])[:, None, None]).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_damaged_images_raise_only_value_errors(suffix, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(pixels).save(path)
    content, rng = path.read_bytes(), np.random.default_rng(1)
    assert images.read(path, (16, 16), 3).shape == (3, 16, 16)
    for trial in range(60):
        damaged = bytearray(content)
        if trial % 2:
            damaged[rng.integers(len(content))] ^= int(rng.integers(1, 256))
        else:
            damaged = damaged[: rng.integers(len(content))]
        path.write_bytes(damaged)
        try:
            assert images.read(path, (16, 16), 3).shape == (3, 16, 16)
        except ValueError as error:
            assert f"x.{suffix} is " in str(error)


def test_formats_that_run_external_programs_are_refused(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(ValueError, match="not an image in a supported format"):
        images.read(path, (4, 4), 3)


def test_too_large_image_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    write_image(tmp_path / "x.png", (11, 11))
    with pytest.raises(ValueError, match="damaged or too large"):
        images.read(tmp_path / "x.png", (4, 4), 3)


def test_unsupported_number_of_channels_is_explained(tmp_path):
    with pytest.raises(ValueError, match="this model needs 4"):
        images.read(tmp_path / "x.png", (4, 4), 4)
