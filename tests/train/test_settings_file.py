"""Settings files: TOML, checked as the flags are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.__main__ import parse
from train.config import file as config
from train.config.errors import InputError
from train.config.flags import Pair
from train.config.settings import FLAGS


def written(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return str(path)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = {
    bool: st.booleans(),
    int: st.integers(1, 1000),
    int | None: st.integers(1, 1000),
    float: st.floats(1e-30, 0.999) | st.just(0.5),
    str: TEXTS,
    Pair: st.tuples(st.floats(0.1, 0.5), st.floats(0.5, 1)),
}


@given(st.data())
def test_settings_file_round_trip(tmp_path_factory, data):
    settings = {
        name: data.draw(st.sampled_from(flag.choices) if flag.choices else VALUES[flag.type])
        for name, flag in FLAGS.items()
    }
    path = tmp_path_factory.mktemp("run") / "args.toml"
    path.write_text(config.text(settings | {"train_num_samples": None}))
    del settings["train_num_samples"]
    found = config.read(path)
    assert found == settings and [type(v) for v in found.values()] == [type(v) for v in settings.values()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = x", r"is not TOML: .*line 1"),
        ("lr = 1\nlr = 2", "is not TOML: "),
        ("model = vit_tiny_cifar", r"is not TOML: .*; strings need quotation marks$"),
        ("a = " + "[" * 5000, "is not TOML: "),
        ("seed = " + "9" * 5000, "is not TOML: "),
        ("wide = 1", r": 'wide' is not a setting \(--help lists them\)"),
        ("batchsize = 1", r": 'batchsize' is not a setting; did you mean batch_size\?$"),
        ("config = 'other.toml'", ": 'config' is not a setting"),
        (
            "[optimizer]\nlr = 1",
            r": \'optimizer\' is a table; a settings file has none: delete the line \[optimizer\]$",
        ),
        ("[lr]\nbase = 1", r": 'lr' is a table; "),
        ("'e\\npochs' = 1", r": 'e\\\\npochs' is not a setting; did you mean epochs"),
        ("batch_size = 8\nbatch-size = 9", ": 'batch-size' is given twice, with - and with _"),
        ("epochs = 2.5", ": 'epochs' must be a whole number, got 2.5"),
        ("epochs = '2'", ": 'epochs' must be a whole number, got '2'"),
        ("epochs = true", ": 'epochs' must be a whole number, got True"),
        ("epochs = 0", ": 'epochs' must be a whole number at least 1, got 0"),
        ("train_num_samples = 'x'", ": 'train_num_samples' must be a whole number, or \"all\", got 'x'"),
        ("lr = '1e-3'", ": 'lr' must be a number, got '1e-3'"),
        ("lr = nan", ": 'lr' must be a number above 0, got nan"),
        ("lr = inf", ": 'lr' must be a number above 0, got inf"),
        ("lr = 1" + "0" * 400, ": 'lr' must be a number above 0, got 10{59}"),
        ("lr = false", ": 'lr' must be a number, got False"),
        ("lr = [1e-3]", r": 'lr' must be a number, got \[0.001\]"),
        ("scale = 0.5", ": 'scale' must be two numbers in brackets, got 0.5"),
        ("scale = [0.5, true]", r": 'scale' must be two numbers in brackets, got \[0.5, True\]"),
        ("scale = [0.9, 0.1]", r": 'scale' must be a minimum and a maximum, got 0.9 0.1"),
        ("amp = 1", ": 'amp' must be true or false, got 1"),
        ("amp = 'yes'", ": 'amp' must be true or false, got 'yes'"),
        ("model = 5", ": 'model' must be a string in quotation marks, got 5"),
        ("model = 2026-01-01", ": 'model' must be a string in quotation marks, got datetime.date"),
        ("recipe = 'slow'", ": 'recipe' must be one of none, laptop, fast, standard, long, got 'slow'"),
        ("remode = 'noise'", ": 'remode' must be one of pixel, rand, const, got 'noise'"),
        ("aa = '" + "x" * 500 + "'\nlr='" + "y" * 500 + "'", r": 'lr' must be a number, got 'y{59}\.\.\.$"),
    ],
)
def test_settings_file_errors(text, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        parse(["--config", written(tmp_path, text)])
    assert str(caught.value).startswith(f"--config {tmp_path}/run.toml") and len(str(caught.value).splitlines()) == 1


def test_unreadable_settings_files_are_refused(tmp_path):
    for path in ("missing.toml", "."):
        with pytest.raises(InputError, match=r"cannot read --config .*\.toml: No such file"):
            parse(["--config", str(tmp_path / path)])


def test_folder_of_a_run_stands_for_its_settings_file(tmp_path):
    (tmp_path / "args.toml").write_text("epochs = 3\n")
    assert parse(["--config", str(tmp_path)]).epochs == 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_settings_file_in_windows_encodings(encoding, newline, tmp_path):
    """Notepad and PowerShell write UTF-8 and UTF-16 with a byte order mark."""
    text = f"epochs = 3{newline}output = 'r\u00e9sultats \u4e2d'{newline}"
    mark = "\ufeff" if encoding.endswith("e") else ""
    (tmp_path / "run.toml").write_bytes((mark + text).encode(encoding))
    found = config.read(tmp_path / "run.toml")
    assert found == {"epochs": 3, "output": "r\u00e9sultats \u4e2d"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'lr = 1\nmodel = "\xe9"', "'utf-8' codec can't decode byte 0xe9 .*, in line 2"),
        (b"\xff\xfe" + "lr = 1\n\n#".encode("utf-16-le") + b"\x00\xd8x\x00", "'utf-16-le' codec can't .*, in line 3"),
        ("lr = 1".encode("utf-16-le"), "a zero byte in line 1, as in UTF-16 without a byte order mark"),
    ],
)
def test_undecodable_bytes_are_located(content, message, tmp_path):
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(InputError, match=rf"^--config .*run\.toml is not TOML: {message}; save the file as UTF-8$"):
        parse(["--config", str(tmp_path / "run.toml")])


def test_non_unicode_name_is_refused():
    with pytest.raises(InputError, match=r"--output: .* cannot be encoded in UTF-8"):
        parse(["--output", "a\udcff"])
