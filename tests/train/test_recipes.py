"""Recipes, and the precedence of flags, settings files, recipes and defaults."""

from dataclasses import asdict

import pytest

from train.__main__ import parse
from train.config import recipes
from train.config.errors import InputError
from train.config.settings import FLAGS, defaults
from train.create import create_augment
from train.data import shapes


def written(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("dataset", FLAGS["dataset"].choices)
@pytest.mark.parametrize("name", recipes.NAMES)
def test_recipe_sets_the_values_of_its_table(name, dataset):
    settings = asdict(parse(["--recipe", name, "--dataset", dataset]))
    chosen = recipes.recipe(name, "vit_nano_cifar")
    assert len(chosen) == len(recipes.TABLE)
    for setting, value in {**defaults(dataset), **chosen, "recipe": name, "dataset": dataset}.items():
        assert settings[setting] == value


@pytest.mark.parametrize("name", recipes.NAMES)
@pytest.mark.parametrize("model", ["vit_nano_cifar", "swin_nano_cifar", "convnext_atto_cifar", "hybrid_nano_cifar"])
def test_recipe_values_are_valid_settings(name, model):
    """The values pass the checks of their flags and of the augmentation."""
    for setting, value in recipes.recipe(name, model).items():
        checked = FLAGS[setting].check(value)
        assert checked == value and type(checked) is type(value)
    create_augment(parse(["--recipe", name, "--model", model]), shapes.load(10, 10))


def test_model_family_overrides_a_recipe(monkeypatch):
    monkeypatch.setattr(recipes, "BY_FAMILY", {"swin": {"lr": (0.5, 1.0, 2.0, 3.0)}})
    assert recipes.recipe("standard", "swin_nano_cifar") == recipes.recipe("standard", "vit_nano_cifar") | {"lr": 2.0}


# Precedence -----------------------------------------------------------------------------------------------------------


def test_precedence_of_flag_file_recipe_dataset(tmp_path):
    file = written(tmp_path, 'recipe = "standard"\nlr = 0.5\nmixup = 0.25\ndataset = "cifar10"\nmodel-ema = false\n')
    settings = parse(["--config", file, "--mixup", "0.125"])
    assert settings.dataset == "cifar10" and settings.recipe == "standard"
    assert settings.mixup == 0.125  # a flag
    assert settings.lr == 0.5 and settings.model_ema is False  # the file
    assert settings.epochs == 200 and settings.aa == "rand-m9-mstd0.5-inc1"  # its recipe
    assert settings.weight_decay == 0.05 and settings.seed == 0  # every run


def test_optimizer_sets_learning_rate_and_weight_decay(tmp_path):
    """The values of a recipe are for AdamW and Muon."""

    def found(*flags):
        settings = parse(list(flags))
        return settings.lr, settings.weight_decay

    assert found("--dataset", "cifar10") == found("--dataset", "cifar10", "--opt", "muon") == (1e-3, 0.05)
    assert found("--opt", "adam") == (3e-3, 0) and found("--opt", "adam", "--recipe", "long") == (1.5e-3, 0)
    assert found("--opt", "sgd") == found("--opt", "sgd", "--recipe", "standard") == (0.1, 5e-4)
    assert found("--opt", "sgd", "--lr", "0.2", "--weight-decay", "0") == (0.2, 0)
    of_adamw = written(tmp_path, "lr = 0.01\nweight-decay = 0.1\n")
    assert found("--config", of_adamw, "--opt", "adamw") == found("--config", of_adamw, "--opt", "muon") == (0.01, 0.1)
    assert found("--config", of_adamw, "--opt", "adam") == (0.01, 0)
    assert found("--config", of_adamw, "--opt", "sgd") == (0.1, 5e-4)
    of_sgd = written(tmp_path, 'opt = "sgd"\nlr = 0.5\n')
    assert found("--config", of_sgd) == (0.5, 5e-4) and found("--config", of_sgd, "--opt", "adamw") == (3e-3, 0.05)
    run = written(tmp_path, 'opt = "sgd"\nlr = 0.5\nweight_decay = 5e-4\n')
    assert found("--config", run, "--recipe", "standard") == (1.5e-3, 0.05)
    assert found("--config", run, "--recipe", "standard", "--opt", "sgd") == (0.1, 5e-4)


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
