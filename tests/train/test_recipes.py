"""Recipes, settings files, flags and their precedence."""

from dataclasses import asdict, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.__main__ import parse
from train.config import file as config
from train.config import recipes
from train.config.errors import InputError
from train.config.flags import parser
from train.config.settings import BY_DATASET, COMMON, Settings
from train.data import shapes
from train.data.augment import augmentation


def written(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("dataset", BY_DATASET)
@pytest.mark.parametrize("name", recipes.NAMES)
def test_recipe_sets_the_values_of_its_table(name, dataset):
    settings = asdict(parse(["--recipe", name, "--dataset", dataset]))
    chosen = recipes.recipe(name, "vit_nano_cifar")
    assert len(chosen) == len(recipes.TABLE)
    for setting, default in {**COMMON, **BY_DATASET[dataset], **chosen}.items():
        assert settings[setting] == (name if setting == "recipe" else dataset if setting == "dataset" else default)


@pytest.mark.parametrize("name", recipes.NAMES)
@pytest.mark.parametrize("model", ["vit_nano_cifar", "swin_nano_cifar", "convnext_atto_cifar", "hybrid_nano_cifar"])
def test_recipe_values_are_valid_settings(name, model, tmp_path):
    """The values pass the checks of a settings file and of the augmentation."""
    path = tmp_path / "args.toml"
    path.write_text(config.text(recipes.recipe(name, model)))
    assert config.read(path, parser()) == recipes.recipe(name, model)
    augmentation(parse(["--recipe", name, "--model", model]), shapes.load(10, 10))


def test_model_family_overrides_a_recipe(monkeypatch):
    monkeypatch.setattr(recipes, "BY_FAMILY", {"swin": {"lr": (1.0, 2.0, 3.0)}})
    assert recipes.recipe("standard", "swin_nano_cifar") == recipes.recipe("standard", "vit_nano_cifar") | {"lr": 2.0}


def test_help_shows_the_recipes():
    lines = parser().format_help().splitlines()
    start = lines.index(next(line for line in lines if line.split() == list(recipes.NAMES)))
    shown = [line.split() for line in lines[start + 1 : start + 1 + len(recipes.TABLE)]]
    assert [flag for flag, *_ in shown] == [f"--{name.replace('_', '-')}" for name in recipes.TABLE]
    assert ["--epochs", "30", "200", "500"] in shown
    assert "--lr of hybrid models 0.0015 0.0015 0.0015" in [" ".join(line.split()) for line in lines]


def test_help_has_one_line_per_flag():
    flags, text = parser(), parser().format_help()
    assert len(text[text.index("what to train:") : text.index("what the recipes set")].splitlines()) == (
        len(flags._actions) - 1 + 2 * (len(flags._action_groups) - 2)
    )


def test_every_setting_has_a_flag():
    """And every flag has a setting."""
    names = {action.dest for action in parser()._actions} - {"help", "config"}
    assert names == {field.name for field in fields(Settings)}


# Precedence -----------------------------------------------------------------------------------------------------------


def test_precedence_of_flag_file_recipe_dataset(tmp_path):
    file = written(tmp_path, 'recipe = "standard"\nlr = 0.5\nmixup = 0.25\ndataset = "cifar10"\nmodel-ema = false\n')
    settings = parse(["--config", file, "--mixup", "0.125"])
    assert settings.dataset == "cifar10" and settings.recipe == "standard"
    assert settings.mixup == 0.125  # a flag
    assert settings.lr == 0.5 and settings.model_ema is False  # the file
    assert settings.epochs == 200 and settings.aa == "rand-m9-n2-mstd0.5-inc1"  # its recipe
    assert settings.weight_decay == 0.05 and settings.seed == 0  # every run


def test_recipe_flag_overrides_the_file(tmp_path):
    file = written(tmp_path, 'recipe = "standard"\nepochs = 7\nseed = 3\n')
    settings = parse(["--config", file, "--recipe", "fast", "--lr", "0.25"])
    assert (settings.recipe, settings.epochs, settings.seed, settings.lr) == ("fast", 30, 3, 0.25)
    settings = parse(["--config", file, "--recipe", "none"])
    assert (settings.recipe, settings.epochs, settings.mixup) == ("none", 7, 0.0)


def test_default_warmup_of_a_short_run(tmp_path):
    assert parse(["--dataset", "cifar10", "--epochs", "2"]).warmup_epochs == 0.2
    file = written(tmp_path, 'dataset = "cifar10"\nepochs = 2\nwarmup-epochs = 3')
    with pytest.raises(InputError, match="--warmup-epochs 3 is more than --epochs 2"):
        parse(["--config", file])


# Settings files -------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = {
    "bool": st.booleans(),
    "int": st.integers(1, 1000),
    "float": st.floats(1e-30, 0.999) | st.just(0.5),
}


@given(st.data())
def test_settings_file_round_trip(tmp_path_factory, data):
    settings = {}
    for action in parser()._actions:
        field = next((field for field in fields(Settings) if field.name == action.dest), None)
        if field is not None:
            kind = getattr(field.type, "__name__", "int")
            strategy = st.sampled_from(list(action.choices)) if action.choices else VALUES.get(kind, TEXTS)
            settings[action.dest] = data.draw(strategy)
    path = tmp_path_factory.mktemp("run") / "args.toml"
    path.write_text(config.text(settings | {"train_num_samples": None}))
    del settings["train_num_samples"]
    found = config.read(path, parser())
    assert found == settings and [type(v) for v in found.values()] == [type(v) for v in settings.values()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = x", r"is no TOML: .*line 1"),
        ("lr = 1\nlr = 2", "is no TOML: "),
        ("a = " + "[" * 5000, "is no TOML: "),
        ("seed = " + "9" * 5000, "is no TOML: "),
        ("lrate = 1", r": 'lrate' is no setting \(--help lists them\)"),
        ("batchsize = 1", r": 'batchsize' is no setting; did you mean batch_size\?$"),
        ("config = 'other.toml'", ": 'config' is no setting"),
        ("[optimizer]\nlr = 1", r": 'optimizer' is no setting"),
        ("[lr]\nbase = 1", r": 'lr' must be a number, got {'base': 1}"),
        ("'e\\npochs' = 1", r": 'e\\\\npochs' is no setting; did you mean epochs"),
        ("batch_size = 8\nbatch-size = 9", ": 'batch-size' is there twice, with - and with _"),
        ("epochs = 2.5", ": 'epochs' must be a whole number, got 2.5"),
        ("epochs = '2'", ": 'epochs' must be a whole number, got '2'"),
        ("epochs = true", ": 'epochs' must be a whole number, got True"),
        ("epochs = 0", ": 'epochs' must be at least 1, got 0"),
        ("train_num_samples = 'all'", ": 'train_num_samples' must be a whole number, got 'all'"),
        ("lr = '1e-3'", ": 'lr' must be a number, got '1e-3'"),
        ("lr = nan", ": 'lr' must be a number above 0, got 'nan'"),
        ("lr = inf", ": 'lr' must be a number above 0, got 'inf'"),
        ("lr = false", ": 'lr' must be a number, got False"),
        ("lr = [1e-3]", r": 'lr' must be a number, got \[0.001\]"),
        ("amp = 1", ": 'amp' must be true or false, got 1"),
        ("amp = 'yes'", ": 'amp' must be true or false, got 'yes'"),
        ("model = 5", ": 'model' must be a text in quotation marks, got 5"),
        ("model = 2026-01-01", ": 'model' must be a text in quotation marks, got datetime.date"),
        ("recipe = 'slow'", ": 'recipe' must be one of none, fast, standard, long, got 'slow'"),
        ("remode = 'noise'", ": 'remode' must be one of pixel, rand, const, got 'noise'"),
        ("aa = '" + "x" * 500 + "'\nlr='" + "y" * 500 + "'", r": 'lr' must be a number, got 'y{59}\.\.\.$"),
    ],
)
def test_settings_file_errors(text, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        parse(["--config", written(tmp_path, text)])
    assert str(caught.value).startswith(f"--config {tmp_path}/run.toml") and len(str(caught.value).splitlines()) == 1


def test_unreadable_settings_files_are_refused(tmp_path):
    for path, message in (("missing.toml", "No such file"), (".", "Is a directory")):
        with pytest.raises(InputError, match=f"cannot read --config .*: {message}"):
            parse(["--config", str(tmp_path / path)])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_settings_file_in_the_encodings_of_windows(encoding, newline, tmp_path):
    """Notepad and PowerShell write UTF-8 and UTF-16 with a byte order mark."""
    text = f"epochs = 3{newline}output = 'r\u00e9sultats \u4e2d'{newline}"
    mark = "\ufeff" if encoding.endswith("e") else ""
    (tmp_path / "run.toml").write_bytes((mark + text).encode(encoding))
    found = config.read(tmp_path / "run.toml", parser())
    assert found == {"epochs": 3, "output": "r\u00e9sultats \u4e2d"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'lr = 1\nmodel = "\xe9"', "'utf-8' codec can't decode byte 0xe9 .*, in line 2"),
        (b"\xff\xfe" + "lr = 1\n\n#".encode("utf-16-le") + b"\x00\xd8x\x00", "'utf-16-le' codec can't .*, in line 3"),
        ("lr = 1".encode("utf-16-le"), "a zero byte in line 1, as in UTF-16 without a byte order mark"),
    ],
)
def test_bytes_that_are_no_text_are_located(content, message, tmp_path):
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(InputError, match=rf"^--config .*run\.toml is no TOML: {message}; save the file as UTF-8$"):
        parse(["--config", str(tmp_path / "run.toml")])


def test_non_unicode_name_is_refused():
    with pytest.raises(InputError, match=r"--output: .*UTF-8"):
        parse(["--output", "a\udcff"])


# Flags ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "meant"),
    [
        (["--batch_size=8"], "--batch-size"),
        (["--weigth-decay", "-1"], "--weight-decay"),
        (["--no-apm"], "--no-amp"),
        (["--warmup", "1"], "--warmup-epochs"),
        (["-lr", "0.1", "--epoch", "3"], "--lr, --epochs"),
    ],
)
def test_mistyped_flag_gets_a_suggestion(flags, meant):
    with pytest.raises(InputError, match=rf"^unrecognized arguments: {' '.join(flags)}; did you mean {meant}\? \("):
        parse(flags)


@pytest.mark.parametrize("name", ["train_num_samples", "val_num_samples"])
def test_num_samples_all_overrides_a_file(name, tmp_path):
    file, flag = written(tmp_path, f"{name} = 7\n"), f"--{name.replace('_', '-')}"
    assert getattr(parse(["--config", file]), name) == 7
    assert getattr(parse(["--config", file, flag, "all"]), name) is None
    with pytest.raises(InputError, match=f"{flag}: must be a whole number at least 1, or all, got 'none'"):
        parse([flag, "none"])
