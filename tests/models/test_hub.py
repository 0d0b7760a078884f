"""Published weights: huggingface_hub itself, against a server on this machine. Each failure is one line."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import models
from minigrad import nn
from models import images, predict, pretrained
from models.compare import formula
from models.registry import model_class
from models.weights import hub, table
from models.weights.hub import HubError
from tests.models.checkpoints import write_image
from tests.models.fake_hub import COMMIT, hub_server
from train import __main__ as train

huggingface_hub = pytest.importorskip("huggingface_hub")
safetensors = pytest.importorskip("safetensors.numpy")
ROOT = Path(__file__).parents[2]
__all__ = ["hub_server"]  # a fixture

REPOSITORY, NAME = "timm/vit_nano_cifar.test", "vit_nano_cifar.test"
LINE = {
    "architecture": "vit_nano_cifar",
    "tag": "test",
    "hf_hub_id": REPOSITORY,
    "license": "apache-2.0",
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.25, 0.3),
    "crop_pct": 0.875,
    "crop_mode": "center",
    "interpolation": "bilinear",
}
LABELS = ["tench, Tinca tinca", "crane, bird", "crane, machine", *"defghij"]


@pytest.fixture
def server(hub_server, monkeypatch):
    """A Hub with the weights of `NAME`, which is in the table; an empty cache."""
    hub_server.files[REPOSITORY] = {"model.safetensors": weights("vit_nano_cifar")}
    published = dict(table._published())
    monkeypatch.setattr(table, "_published", lambda: {NAME: LINE} | published)
    return hub_server


def weights(name, **overrides):
    """The content of a safetensors file with formula weights."""
    model = formula.fill(models.create_model(name, **overrides)).to(dtype=np.float32)
    return safetensors.save({key: x.numpy() for key, x in model.state_dict().items()})


def refusal(call, *arguments, **keywords):
    """The message of a HubError, which is one line and names the repository."""
    with pytest.raises(HubError) as caught:
        call(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message and "https://huggingface.co/" in message
    assert caught.value.__context__ is None or caught.value.__suppress_context__  # no traceback of an HTTP library
    return message


def equal(a, b):
    return all(np.array_equal(x.numpy(), b.state_dict()[name].numpy()) for name, x in a.state_dict().items())


expected = formula.fill(models.create_model("vit_nano_cifar")).to(dtype=np.float32)


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [NAME, "vit_nano_cifar"])
def test_weights_in_one_line(server, name):
    model = models.create_model(name, pretrained=True)
    assert equal(model, expected) and model.pretrained_cfg == LINE
    assert [method for method, _ in server.requests] == ["HEAD", "GET"]
    assert {path for _, path in server.requests} == {f"/{REPOSITORY}/resolve/main/model.safetensors"}


def test_second_call_downloads_nothing(server, monkeypatch):
    models.create_model(NAME, pretrained=True)
    server.requests.clear()
    assert equal(models.create_model(NAME, pretrained=True), expected)
    assert [method for method, _ in server.requests] == ["HEAD"]
    server.down = True
    assert equal(models.create_model(NAME, pretrained=True), expected)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    server.requests.clear()
    assert equal(models.create_model(NAME, pretrained=True), expected) and not server.requests


def test_without_pretrained_nothing_is_downloaded(server):
    model = models.create_model(NAME)
    assert model.pretrained_cfg == LINE and model.num_classes == 10 and not server.requests
    assert models.create_model("vit_nano_cifar").pretrained_cfg == LINE
    assert models.create_model("vit_tiny_cifar").pretrained_cfg == {}


def test_other_classes_get_a_new_head(server):
    model = models.create_model(NAME, pretrained=True, num_classes=7)
    assert model.head.weight.shape == (7, 64) and not model.head.weight.numpy().any()
    np.testing.assert_array_equal(model.pos_embed.numpy(), expected.pos_embed.numpy())
    model = models.create_model(NAME, pretrained=True, num_classes=0)
    assert isinstance(model.get_classifier(), nn.Identity)


def test_positions_are_resampled_to_the_image_size(server):
    assert models.create_model(NAME, pretrained=True, img_size=48).pos_embed.shape == (1, 1 + 12 * 12, 64)


def test_weights_without_classifier(server, monkeypatch):
    monkeypatch.setitem(LINE, "num_classes", 0)
    server.files[REPOSITORY]["model.safetensors"] = weights("vit_nano_cifar", num_classes=0)
    assert models.create_model(NAME, pretrained=True).num_classes == 0
    assert models.create_model(NAME, pretrained=True, num_classes=3).num_classes == 3
    with pytest.raises(ValueError, match=r"the weights of vit_nano_cifar.test have no classifier; the w"):
        pretrained.load(NAME)


def test_cut_connection_is_resumed(server):
    server.cuts = 2
    assert equal(models.create_model(NAME, pretrained=True), expected)
    assert [method for method, _ in server.requests] == ["HEAD", "GET", "GET", "GET"]


# Failures -------------------------------------------------------------------------------------------------------------

BY_HAND = (
    f"download https://huggingface.co/{REPOSITORY}/resolve/main/model.safetensors by hand and call "
    "models.load_weights(model, 'model.safetensors')"
)
START = f"model.safetensors of https://huggingface.co/{REPOSITORY} cannot be downloaded: "


def test_library_missing(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = refusal(models.create_model, NAME, pretrained=True)
    assert "is not installed: pip install huggingface_hub; or " + BY_HAND in message


def test_offline(server, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refusal(models.create_model, NAME, pretrained=True)
    assert message.startswith(f"{START}HF_HUB_OFFLINE is set, and the file is not in the cache ")
    assert message.endswith(f"cache; unset it, or {BY_HAND}") and not server.requests


def test_no_network(server):
    server.close()
    message = refusal(models.create_model, NAME, pretrained=True)
    assert re.search(r": no answer from the Hub \(.*refused.*\), and the file is not in the cache ", message)
    assert message.endswith(BY_HAND)


def test_server_error(server):
    server.down = True
    assert "no answer from the Hub (Server error '503" in refusal(models.create_model, NAME, pretrained=True)


def test_connection_cut_for_good(server):
    server.cuts = 100
    message = refusal(models.create_model, NAME, pretrained=True)
    assert message.startswith(f"{START}the download failed (") and message.endswith(f"; try again, or {BY_HAND}")


@pytest.mark.parametrize("code", ["RepoNotFound", None])
def test_repository_missing(server, code):
    server.absent = code
    del server.files[REPOSITORY]
    message = refusal(models.create_model, NAME, pretrained=True)
    assert message == f"{START}there is no such repository, or it is private and needs `hf auth login`"


def test_repository_gated(server):
    server.gated.add(REPOSITORY)
    message = refusal(models.create_model, NAME, pretrained=True)
    assert (
        message
        == f"{START}the repository is gated: accept its conditions there, then log in by `hf auth login`; or {BY_HAND}"
    )


def test_file_missing(server):
    server.files[REPOSITORY] = {}
    assert refusal(models.create_model, NAME, pretrained=True) == f"{START}the repository has no such file"


def test_pickles_are_not_downloaded(server):
    server.files[REPOSITORY] = {"pytorch_model.bin": b"a pickle"}
    message = refusal(models.create_model, NAME, pretrained=True)
    assert message.startswith(f"{START}the repository has only pytorch_model.bin, a pickle; pickles can run code")
    assert message.endswith(BY_HAND.replace("model.safetensors", "pytorch_model.bin"))
    assert ("GET", f"/{REPOSITORY}/resolve/main/pytorch_model.bin") not in server.requests


def test_revision_missing(server):
    server.files[REPOSITORY]["config.json"] = config()
    assert equal(models.create_model(f"hf-hub:{REPOSITORY}@{COMMIT}", pretrained=True), expected)
    message = refusal(models.create_model, f"hf-hub:{REPOSITORY}@v9", pretrained=True)
    assert message.endswith("cannot be downloaded: the repository has no revision 'v9'")


@pytest.mark.parametrize("content", [b"", b"<html>log in</html>", "cut"])
def test_damaged_file(server, content):
    """The message names the file to delete; afterwards the file is downloaded again."""
    good = server.files[REPOSITORY]["model.safetensors"]
    server.files[REPOSITORY]["model.safetensors"] = good[:-100] if content == "cut" else content
    message = refusal(models.create_model, NAME, pretrained=True)
    assert message.startswith(f"model.safetensors of https://huggingface.co/{REPOSITORY} is damaged in the cache (")
    server.files[REPOSITORY]["model.safetensors"] = good
    Path(re.search(r"delete (\S+), and the next call", message)[1]).unlink()
    assert equal(models.create_model(NAME, pretrained=True), expected)


def test_file_damaged_later_in_the_cache(server):
    """The file to delete is not the link to it: the next download would reuse the file."""
    models.create_model(NAME, pretrained=True)
    message = "delete (\\S+), and the next call"
    link = next(Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("model.safetensors"))
    link.write_bytes(link.read_bytes()[:-100])
    Path(re.search(message, refusal(models.create_model, NAME, pretrained=True))[1]).unlink()
    assert equal(models.create_model(NAME, pretrained=True), expected)


def test_missing_head_is_not_left_random(server):
    server.files[REPOSITORY]["model.safetensors"] = weights("vit_nano_cifar", num_classes=0)
    assert "2 missing (head.weight, ...)" in refusal(models.create_model, NAME, pretrained=True)


def test_disk_full(server, monkeypatch):
    usage = SimpleNamespace(total=10, used=9, free=1)
    monkeypatch.setattr("huggingface_hub.file_download.shutil.disk_usage", lambda path: usage)
    message = refusal(models.create_model, NAME, pretrained=True)
    assert re.search(r"not enough disk space \(.*expected file size.*\); free some in .*cache, or set HF_HOME", message)


def test_disk_full_during_the_download(server, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    message = refusal(models.create_model, NAME, pretrained=True)
    assert re.search(r": No space left on device \(.*cache\); HF_HOME sets another folder for the cache$", message)


def test_cache_not_writable(server, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    message = refusal(models.create_model, NAME, pretrained=True)
    assert "Not a directory" in message and message.endswith("HF_HOME sets another folder for the cache")


def test_other_architecture(server):
    server.files[REPOSITORY]["model.safetensors"] = weights("vit_micro_cifar")
    message = refusal(models.create_model, NAME, pretrained=True)
    assert message.startswith(f"model.safetensors of https://huggingface.co/{REPOSITORY} does not fit vit_nano_cifar: ")
    assert message.endswith("its weights look like those of --model vit_micro_cifar")


def test_other_channels_are_refused_before_the_download(server):
    with pytest.raises(ValueError, match=r"are for images of 3 channels, not 1"):
        models.create_model(NAME, pretrained=True, in_chans=1)
    assert not server.requests


def test_unknown_names():
    with pytest.raises(ValueError, match=r"no weights 'vit_tiny_patch16_224.x'; the weights of vit_tiny_p"):
        models.create_model("vit_tiny_patch16_224.x")
    with pytest.raises(ValueError, match="did you mean vit_tiny_patch16_224"):
        models.create_model("vit_tiny_patch16_225.augreg_in21k")
    with pytest.raises(ValueError, match=r"weights of vit_base_patch16_224_in21k; the weights of vit_base_p"):
        models.create_model("vit_base_patch16_224_in21k", pretrained=True)
    with pytest.raises(ValueError, match="there is no model ''"):
        models.create_model("")


# Repositories ---------------------------------------------------------------------------------------------------------


def config(**changes):
    """The content of timm's config.json."""
    own = {key: x for key, x in LINE.items() if key not in ("architecture", "hf_hub_id", "num_classes")}
    return json.dumps({"architecture": "vit_nano_cifar", "num_classes": 10, "pretrained_cfg": own} | changes).encode()


@pytest.mark.parametrize("prefix", ["hf-hub:", "hf_hub:"])
def test_repository_of_timm(server, prefix):
    server.files["me/mine"] = server.files[REPOSITORY] | {
        "config.json": config(num_classes=7, model_args={"depth": 2}),
        "model.safetensors": weights("vit_nano_cifar", num_classes=7, depth=2),
    }
    model = models.create_model(f"{prefix}me/mine", pretrained=True)
    assert (model.num_classes, len(model.blocks)) == (7, 2)
    assert model.pretrained_cfg == LINE | {"hf_hub_id": "me/mine", "num_classes": 7}
    assert models.create_model(f"{prefix}me/mine", drop_path_rate=0.1).num_classes == 7


def test_older_repository_of_timm(server):
    """One level, "labels" under no further key, and defaults for what is left out."""
    server.files["me/mine"] = {
        "config.json": json.dumps({"architecture": "vit_nano_cifar", "num_classes": 10}).encode()
    }
    model = models.create_model("hf-hub:me/mine")
    assert model.pretrained_cfg["mean"] == (0.485, 0.456, 0.406) and model.pretrained_cfg["crop_pct"] == 0.875


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "config.json of https://huggingface.co/me/mine is damaged in the cache"),
        (b"[]", "is not timm's: it names no architecture"),
        (b'{"architectures": ["ViTForImageClassification"], "model_type": "vit"}', "timm's: .* models.load_weights"),
        (config(architecture="resnet50"), "has a resnet50, which is none of python -m models"),
        (config(architecture=3), "it names no architecture"),
        (config(num_classes=-1), "num_classes cannot be -1"),
        (config(num_classes="10"), "num_classes cannot be '10'"),
        (config(pretrained_cfg={"mean": [0.5]}), "have different numbers of channels"),
        (config(pretrained_cfg={"std": [0.5, 0, 0.5]}), "std cannot be"),
        (config(pretrained_cfg={"mean": [float("nan")] * 3}), "mean cannot be"),
        (config(pretrained_cfg={"input_size": 224}), "input_size cannot be 224"),
        (config(pretrained_cfg={"crop_pct": 0}), "crop_pct cannot be 0"),
        (config(pretrained_cfg=3), "pretrained_cfg"),
        (config(model_args={"act": 1}), "vit_nano_cifar has no argument act here"),
        (config(model_args=3), "model_args"),
    ],
)  # fmt: skip
def test_repositories_that_are_refused(server, content, message):
    server.files["me/mine"] = {"config.json": content}
    assert re.search(message, refusal(models.create_model, "hf-hub:me/mine"))


def test_repository_without_owner(server):
    assert refusal(models.create_model, "hf-hub:a/b/c").endswith("the repository must be named owner/name")
    assert refusal(models.create_model, "hf-hub:no/body").endswith("it is private and needs `hf auth login`")


# Class names ----------------------------------------------------------------------------------------------------------


def test_class_names_of_the_repository(server):
    assert hub.class_names(LINE) == list("0123456789")
    server.files[REPOSITORY]["config.json"] = config(label_names=LABELS)
    assert hub.class_names(LINE) == ["tench", "crane, bird", "crane, machine", *"defghij"]
    synsets = [f"n{i}" for i in range(10)]
    own = dict(LINE, label_names=synsets, label_descriptions=dict(zip(synsets, LABELS, strict=True)))
    assert hub.class_names(own)[0] == "tench"
    assert hub.class_names(dict(own, num_classes=9)) == list("012345678")  # names of other classes


@pytest.mark.parametrize(("classes", "file"), hub.LABELS.items())
def test_names_of_imagenet(server, classes, file):
    """ImageNet-22k leaves out two classes of ImageNet-21k."""
    stored = 1000 if classes == 1000 else 21843
    names = {str(i): f"name {i}" for i in range(stored)}
    server.files["datasets/huggingface/label-files"] = {file: json.dumps(names).encode()}
    found = hub.class_names(dict(LINE, num_classes=classes))
    assert len(found) == classes and found[0] == "name 0" and found[-1] == f"name {stored - 1}"
    assert ("name 9205" in found, "name 15027" in found) == ((classes == 21843,) * 2)
    server.files["datasets/huggingface/label-files"] = {file: b"{"}


def test_without_an_answer_names_are_numbers_after_one_try(server):
    server.down = True
    assert hub.class_names(dict(LINE, num_classes=1000)) == [str(i) for i in range(1000)]
    assert {path for _, path in server.requests} == {f"/{REPOSITORY}/resolve/main/config.json"}


# Programs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path):
    pytest.importorskip("PIL.Image")
    write_image(tmp_path / "a.png", (40, 50))
    return tmp_path / "a.png"


def test_predict_prints_names(server, photo, capsys):
    """The probabilities are those of the image resized and normalized as the configuration says."""
    server.files[REPOSITORY]["config.json"] = config(label_names=LABELS)
    pixels = images.read(photo, (32, 32), 3, images.Crop(0.875, "center", "bilinear"))
    probabilities = predict.probabilities(expected, LINE, pixels[None])[0]
    model = ["--model", NAME, "--pretrained"]
    for arguments in ([photo, *model], [*model, photo]):
        assert predict.main([*map(str, arguments), "--top-k", "10"]) == 0
        out = re.sub(" +", " ", capsys.readouterr().out)
        for i, name in ((0, "tench"), (1, "crane, bird"), (2, "crane, machine")):
            assert f" {name} {100 * probabilities[i]:.1f} %" in out


def test_predict_without_network_prints_one_line(server, photo, capsys):
    server.close()
    assert predict.main([str(photo), "--model", NAME, "--pretrained"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"python -m models.predict: {START}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pretrained"], "--model NAME and --pretrained belong together"),
        (["x.npz", "--model", NAME], "--model NAME and --pretrained belong together"),
        (["x.npz", "--pretrained"], "--model NAME and --pretrained belong together"),
        (["--pretrained", "--model", NAME], "give images"),
        (["x.png", "--pretrained", "--model", "vit_nano"], "did you mean vit_nano_cifar"),
    ],
)
def test_predict_arguments(server, arguments, message, capsys):
    assert predict.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_visualize(server, photo, tmp_path):
    pytest.importorskip("matplotlib")
    from models.visualize.__main__ import main

    arguments = [str(photo), "--model", NAME, "--pretrained", "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert {"prediction.png", "attention.png"} <= {path.name for path in (tmp_path / "out").iterdir()}


TRAIN = ["--epochs", "1", "--train-num-samples", "20", "--val-num-samples", "20", "--threads", "1"]


def test_train(server, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert train.main(["--model", NAME, "--pretrained", *TRAIN, "--lr", "1e-12", "--output", out]) == 0
    line = re.search(r"weights .*", capsys.readouterr().out)[0]
    assert line == f"weights  https://huggingface.co/{REPOSITORY} (licence: apache-2.0)"
    model, metadata = models.weights.checkpoint.load(tmp_path / "out" / "last.npz")
    assert metadata["model"]["name"] == "vit_nano_cifar"
    np.testing.assert_allclose(model.pos_embed.numpy(), expected.pos_embed.numpy(), rtol=1e-6)


def test_train_refuses(server, tmp_path, capsys):
    out = ["--output", str(tmp_path / "out")]
    assert train.main(["--model", "vit_tiny_cifar", "--pretrained", *TRAIN, *out]) == 2
    assert "--model vit_tiny_cifar --pretrained: there are no published weights of" in capsys.readouterr().err
    assert train.main(["--pretrained", "--initial-checkpoint", "x.npz", *TRAIN, *out]) == 2
    assert "--pretrained and --initial-checkpoint are both initial weights" in capsys.readouterr().err


def test_in_a_program_of_its_own(server, photo, tmp_path):
    """With the environment variables that users set, and the tag of a model in the table."""
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    server.files[f"timm/{name}"] = {"model.safetensors": weights("vit_tiny_patch16_224")}
    environment = {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "models.predict", "a.png", "--model", "vit_tiny_patch16_224", "--pretrained"]
    for offline in ("0", "1"):
        run = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment | {"HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert run.returncode == 0 and run.stdout.count("%") == 3, run.stderr
    assert os.listdir(tmp_path / "home" / "hub" / f"models--timm--{name}" / "snapshots" / COMMIT) == [
        "model.safetensors"
    ]


def test_models_of_imagenet_22k_have_its_weights():
    assert table.find("swin_tiny_patch4_window7_224_in22k")[1]["tag"] == "ms_in22k"
    assert table.find("convnext_tiny_in22k")[1]["tag"] == "fb_in22k"


def test_the_table_ships_with_the_package():
    assert len(models.list_pretrained()) > 100 and models.list_pretrained("swin_tiny*.ms_in1k")
    assert all(table.find(name)[0] in models.list_models() for name in table.TORCHVISION)


def test_readme_counts_the_weights_of_each_family():
    lines = re.findall(r"^\| ([^|]+) \| [^|]+ \| (\d+) \|", (ROOT / "models" / "README.md").read_text(), re.MULTILINE)
    names = {"VisionTransformer": "ViT", "HybridVisionTransformer": "hybrid", "SwinTransformer": "Swin"}
    names |= {"VisionTransformerDistilled": "DeiT", "DeiT3": "DeiT III"}
    names |= {"SwinTransformerV2": "Swin V2", "ConvNeXtV2": "ConvNeXt V2"}
    families = [model_class(name.partition(".")[0]).__name__ for name in models.list_pretrained()]
    assert dict(lines) == {key: str(n) for key, n in Counter(names.get(name, name) for name in families).items()}
