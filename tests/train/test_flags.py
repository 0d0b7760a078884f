"""Flags: declared once, as the fields of `Settings`; checked alike on the command line and in files."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from train.__main__ import parse
from train.config import recipes
from train.config.errors import InputError
from train.config.flags import Flag, show
from train.config.parser import parser
from train.config.settings import FLAGS, Settings

PAGE = Path(__file__).parents[2] / "train" / "README.md"


def test_help_shows_the_recipes():
    lines = parser().format_help().splitlines()
    start = lines.index(next(line for line in lines if line.split() == list(recipes.NAMES)))
    shown = [line.split() for line in lines[start + 1 : start + 1 + len(recipes.TABLE)]]
    assert [flag for flag, *_ in shown] == [f"--{name.replace('_', '-')}" for name in recipes.TABLE]
    assert ["--epochs", "60", "30", "200", "500"] in shown
    assert "--lr (hybrid) 0.005 0.0015 0.0015 0.0015" in [" ".join(line.split()) for line in lines]


def test_help_has_one_line_per_flag():
    flags, text = parser(), parser().format_help()
    assert len(text[text.index("what to train:") : text.index("what the recipes set")].splitlines()) == (
        len(flags._actions) - 2 + 2 * (len(flags._action_groups) - 2)
    )


def test_each_setting_has_a_flag_and_each_flag_a_setting():
    names = {action.dest for action in parser()._actions} - {"help", "config"}
    assert names == {field.name for field in fields(Settings)} == FLAGS.keys()


def test_readme_shows_the_help():
    """The default of `--threads` depends on the machine; the README shows 2."""
    flag = FLAGS["threads"]
    shown = parser().format_help().replace(flag.help, f"{flag.text} (2)")
    assert f"```text\n{shown}```" in PAGE.read_text()


@pytest.mark.parametrize("name", FLAGS)
def test_defaults_are_valid_settings(name):
    flag = FLAGS[name]
    for default in {flag.default, flag.default_for("shapes")} if not flag.shown else {}:
        checked = flag.check(default)
        assert checked == default and type(checked) is type(default)
    assert bool(flag.shown) == (name in ("graph", "output"))
    if not flag.shown:
        assert getattr(parse([]), name) == flag.default_for("shapes")


def test_default_may_depend_on_the_dataset():
    flag = Flag(name="flips", type=float, text="flips", default=0.5, shapes=0.0, at_least=0)
    assert (flag.default_for("shapes"), flag.default_for("cifar10")) == (0.0, 0.5)
    assert flag.help == "flips (0 for shapes, else 0.5)" and flag.option == "--flips"


@pytest.mark.parametrize(
    ("type_", "limits", "allowed", "refused", "domain"),
    [
        (int, {"at_least": 1}, ["1", "7", str(10**400)], ["0", "-1", "1.5", "x", "nan"], "a whole number at least 1"),
        (int, {"at_least": 0, "at_most": 9}, ["0", "9"], ["-1", "10"], "a whole number from 0 to 9"),
        (int | None, {"at_least": 1}, ["1", "all"], ["0", "none"], "a whole number at least 1, or all"),
        (float, {"above": 0}, ["1e-300", "3.0"], ["0", "inf", "nan", "-1"], "a number above 0"),
        (float, {"above": 0, "at_most": 1}, ["1.0"], ["0", "1.01"], "a number above 0 and at most 1"),
        (float, {"at_least": 0, "below": 1}, ["0.0"], ["1", "-0.1"], "a number at least 0 and below 1"),
        (float, {"at_least": 0, "at_most": 1}, ["0.0", "1.0"], ["-0.1", "1.1"], "a number from 0 to 1"),
        (str, {"choices": ("a", "b")}, ["a"], ["c", ""], "one of a, b"),
    ],
)
def test_values_out_of_range_are_refused(type_, limits, allowed, refused, domain):
    flag = Flag(name="x", type=type_, text="x", **limits)
    for argument in allowed:
        value = flag.read(argument)
        assert str(value) == {"all": "None"}.get(argument, argument) and flag.check(value) == value
    for argument in refused:
        with pytest.raises(ValueError, match=f"^must be {domain}, got '{argument}'$"):
            flag.read(argument)


@pytest.mark.parametrize(
    ("type_", "value", "message"),
    [
        (int, True, "a whole number, got True"),
        (int, 1.0, "a whole number, got 1.0"),
        (int, None, "a whole number, got None"),
        (int | None, "any", "a whole number, or \"all\", got 'any'"),
        (float, "1", "a number, got '1'"),
        (float, 10**400, "a number at least 0, got 10{59}"),
        (bool, 1, "true or false, got 1"),
        (str, 1, "a string in quotation marks, got 1"),
    ],
)
def test_setting_of_another_type_is_refused(type_, value, message):
    flag = Flag(name="x", type=type_, text="x", at_least=0)
    with pytest.raises(ValueError, match=f"^must be {message}"):
        flag.check(value)


@pytest.mark.parametrize(
    ("flags", "meant"),
    [
        (["--batch_size=8"], "--batch-size"),
        (["--weigth-decay", "-1"], "--weight-decay"),
        (["--no-apm"], "--no-amp"),
        (["--warmup", "1"], "--warmup-epochs"),
        (["-lr", "0.1", "--epoch", "3"], "--lr, --epochs"),
        (["\u2013epochs", "3"], "--epochs"),
    ],
)
def test_mistyped_flag_gets_a_suggestion(flags, meant):
    with pytest.raises(InputError, match=rf"^unrecognized arguments: {' '.join(flags)}; did you mean {meant}\? \("):
        parse(flags)


@pytest.mark.parametrize("name", [name for name, flag in FLAGS.items() if flag.type is not bool and not flag.shown])
def test_default_in_parentheses_is_accepted_as_a_value(name, tmp_path):
    flag, file = FLAGS[name], tmp_path / "run.toml"
    shown = re.search(r"\(([^()]*)\)$", flag.help)[1].split(" for shapes, else ")
    for text, dataset in zip(shown, ("shapes", "cifar10"), strict=False):
        others = [] if name == "dataset" else ["--dataset", dataset]
        words = text.split()  # several: a list in TOML
        values = [word if flag.type is not str and word.replace(".", "").isdecimal() else repr(word) for word in words]
        file.write_text(f"{name} = [{', '.join(values)}]\n" if words[1:] else f"{name} = {values[0]}\n")
        for given in ([flag.option, *words], ["--config", str(file)]):
            assert show(getattr(parse([*given, *others]), name)) == text == show(flag.default_for(dataset))


def test_config_none_is_no_file():
    assert parse(["--config", "none"]) == parse([])


@pytest.mark.parametrize("name", ["train_num_samples", "val_num_samples"])
def test_num_samples_all_overrides_a_file(name, tmp_path):
    file, flag = tmp_path / "run.toml", FLAGS[name].option
    file.write_text(f"{name} = 7\n")
    assert getattr(parse(["--config", str(file)]), name) == 7
    assert getattr(parse(["--config", str(file), flag, "all"]), name) is None
    with pytest.raises(InputError, match=f"{flag}: must be a whole number at least 1, or all, got 'none'"):
        parse([flag, "none"])


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        ("--momentum 0.8", ["--momentum has no effect without --opt sgd"]),
        ("--opt sgd --momentum 0.8 --amp-dtype float16", ["--amp-dtype has no effect without --amp"]),
        ("--mixup 1 --mixup-switch-prob 1", ["--mixup-switch-prob has no effect without both --mixup and --cutmix"]),
        ("--mixup 1 --mixup-prob 1 --reprob 1 --remode rand", []),
        ("--mixup 1 --batch-size 1", ["--mixup has no effect with --batch-size 1"]),
        (
            "--no-aug --cutout 8 --remode rand",
            [f"--{name} has no effect with --no-aug" for name in ("cutout", "remode")],
        ),
        ("--recipe standard --mixup-prob 1 --model-ema-decay 0.9", []),
        ("--ratio 1 2", ["--ratio has no effect without --scale"]),
    ],
)
def test_flags_without_effect_are_named(flags, lines, capsys):
    parse(flags.split())
    assert capsys.readouterr().err.splitlines() == lines


def test_settings_of_a_file_without_effect_are_not_named(tmp_path, capsys):
    (tmp_path / "run.toml").write_text("momentum = 0.8\n")
    assert parse(["--config", str(tmp_path / "run.toml")]).momentum == 0.8
    assert not capsys.readouterr().err
