"""`python -m models.visualize --html`: the data of the page, the page as a file, and the page in a browser.

The tests in a browser need `pip install playwright` and a Chromium; those of the JavaScript functions need node.
"""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import models
from minigrad import Tensor
from minigrad.ops.window_attention import shift_mask, window_places
from models.compare import formula
from models.visualize import attention, fonts, html, windows
from models.visualize.__main__ import main
from tests.models.checkpoints import CLASSES, FAMILIES, METADATA, write, write_image
from tests.models.small import small

PAGE = Path(html.__file__).parent / "page"
HOSTILE = "</script><img src=x onerror=alert(1)>@data@&amp;\u2028'\""


def collected(family, count=2, classes=CLASSES, names=None, **changes):
    """The model, its normalized images, and the data of the page."""
    arguments = {"num_classes": len(CLASSES)} | FAMILIES[family] | changes
    model = formula.fill(models.create_model(**arguments)).to(dtype=np.float32).eval()
    metadata = METADATA | {"model": arguments, "classes": classes}
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, *model.img_size), dtype=np.uint8)
    names = names or [f"{i}.png" for i in range(count)]
    data = html.collect(model, metadata, names, pixels)
    return model, html.to_input(pixels, model, metadata), data, html.page(model, metadata, names, pixels)


def decoded(layer, image, queries, keys):
    """Attention (heads, queries, keys) from its bytes and scales, and the error allowed in each row."""
    stored = layer["images"][image]
    steps = np.frombuffer(base64.b64decode(stored["attention"]), np.uint8).reshape(-1, queries, keys)
    scales = np.frombuffer(base64.b64decode(stored["scales"]), "<f4").reshape(-1, queries, 1)
    return steps * (scales / 255), scales / 500


# The data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "vit_avg", "distilled", "dinov2", "hybrid"])
def test_attention_and_rollout_match_the_model(family):
    model, x, data, _ = collected(family)
    n, tokens = model.num_prefix_tokens, len(data["tokens"])
    average = model.global_pool == "avg"
    assert tokens == n + average and data["prefix"] == n
    layers = [layer for layer in data["layers"] if "attention" in layer["views"]]
    for b in range(2):
        maps = [A.numpy() for A in model.attention_maps(x[b : b + 1])]
        for layer, A, flow in zip(layers, maps, attention.rollout(maps), strict=True):
            A, (h, w) = np.concatenate([A[0], flow]), layer["grid"]
            queries = [n + i * w + j for i in layer["rows"] for j in layer["columns"]]
            expected = A[:, [*range(n), *queries]]
            if average:
                expected = np.concatenate([A[:, n:].mean(1, keepdims=True), expected], 1)
            found, error = decoded(layer, b, tokens + len(queries), n + h * w)
            assert len(found) == layer["heads"] + 1 and (abs(found - expected) <= error).all()


def test_window_attention_matches_the_model():
    model, x, data, _ = collected("swin", img_size=[36, 44], depths=[2, 2])
    for b in range(2):
        maps = [A.numpy()[0] for A in model.attention_maps(x[b : b + 1])]
        for layer, A in zip(data["layers"], maps, strict=True):
            (h, w), (Hp, Wp) = layer["grid"], layer["window"]["padded"]
            M, shift = layer["window"]["size"], layer["window"]["shift"]
            queries = [(i, j) for i in layer["rows"] for j in layer["columns"]]
            found, error = decoded(layer, b, len(queries), M[0] * M[1])
            for q, (i, j) in enumerate(queries):
                inside = windows.window_of((i, j), (Hp, Wp), shift, tuple(M))[:h, :w]
                row = A[:, i * w + j]
                assert not row[:, ~inside.reshape(-1)].any()
                np.testing.assert_allclose(found[:, q].sum(-1), row.sum(-1), atol=0.05)
                np.testing.assert_allclose(np.sort(found[:, q])[:, -1], row.max(-1), rtol=1e-6)
                assert (abs(np.sort(found[:, q])[:, -3:] - np.sort(row)[:, -3:]) <= error[:, q]).all()


@pytest.mark.parametrize("stem", [{}, {"stem_size": 2, "stem_kernel_size": 3}], ids=["patches", "overlapping"])
def test_receptive_fields_match_the_gradient(stem):
    """The gradient of one position of a block's output is zero outside the receptive field, and at its edges is not."""
    model = formula.fill(small("convnext", img_size=64, kernel_size=5, depths=(1, 2, 1), **stem))
    for index, (jump, before, after) in enumerate(html.receptive_fields(model)):
        x = Tensor(formula.stream("x", 1, 3, 64, 64), requires_grad=True)
        output = model.forward_intermediates(x)[1][index]
        i, j = output.shape[2] // 2, output.shape[3] // 2 - 1
        output[0, :, i, j].sum().backward()
        rows, columns = (np.flatnonzero(abs(x.grad.numpy()[0]).sum(axes)) for axes in ((0, 2), (0, 1)))
        for found, place in ((rows, i), (columns, j)):
            assert found[0] == max(place * jump - before, 0) and found[-1] == min(place * jump + after, 63)


def test_norms_and_colours_of_features():
    features = formula.stream("f", 2, 5, 3, 4)
    np.testing.assert_allclose(html.token_norms(features)[1, 2, 3], np.linalg.norm(features[1, :, 2, 3]))
    colours = html.principal_colours(features)
    tokens = features.transpose(0, 2, 3, 1).reshape(-1, 5)
    U, S, _ = np.linalg.svd(tokens - tokens.mean(0), full_matrices=False)
    assert colours.shape == (2, 3, 4, 3) and colours.min() == 0 and colours.max() == 255
    for c in range(3):  # up to clipping and the sign
        assert abs(np.corrcoef(colours.reshape(-1, 3)[:, c], U[:, c] * S[c])[0, 1]) > 0.98
    assert html.principal_colours(np.ones((1, 2, 2, 2))).shape == (1, 2, 2, 3)  # two channels, no variance


def test_sampled_attention_keeps_the_page_within_the_limit(monkeypatch):
    full = collected("vit", 4)[3]
    monkeypatch.setattr(html, "LIMIT", 190_000)
    _, _, data, page = collected("vit", 4)
    assert len(page) < 190_000 < len(full) and len(data["layers"][0]["rows"]) < 8
    monkeypatch.setattr(html, "LIMIT", 60_000)
    with pytest.raises(ValueError, match="would be larger than 60,000 bytes: give fewer images, or a smaller model"):
        collected("vit", 4)


def test_large_images_are_reduced():
    shown = html._shown(np.arange(600, dtype=np.float64).reshape(1, 1, 600).repeat(300, 1) % 256)
    assert shown["shape"] == [100, 200] and shown["extent"] == [300, 600]
    assert base64.b64decode(shown["rgb"])[:6] == bytes([1, 1, 1, 4, 4, 4])


# The file -------------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """The tags with their attributes, and the text of the JSON element."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.json, self.inside = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = ("type", "application/json") in attrs

    def handle_data(self, text):
        self.json += text if self.inside else ""

    def handle_endtag(self, tag):
        self.inside = False


@pytest.mark.parametrize("family", FAMILIES)
def test_page_needs_no_other_file_and_names_stay_data(family):
    classes = [f"{HOSTILE}{i}" for i in range(len(CLASSES))]
    names = [HOSTILE, "\udc80.png"]
    _, _, data, page = collected(family, classes=classes, names=names)
    page.encode()  # no lone surrogate
    reader = Reader(page)
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("script") == 2 and "img" not in tags and not re.search("<(iframe|object|embed|base)", page)
    assert not any(value for _, attributes in reader.tags for name, value in attributes.items() if name == "src")
    assert [a["href"] for _, a in reader.tags if "href" in a] == ["data:,"]
    assert "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page and "unsafe" not in page
    read = json.loads(reader.json)
    assert read == json.loads(json.dumps(data))
    assert [image["name"] for image in read["images"]] == names
    assert {name for name, _ in read["images"][0]["prediction"]} <= set(classes)
    for layer in read["layers"]:
        for view in layer["views"]:
            assert layer["docs"][view]
    for doc in read["docs"]:
        source = (Path(models.__file__).parents[1] / doc["file"]).read_text(encoding="utf-8")
        assert doc["name"] in source and doc["text"].splitlines()[0] in source


def test_command_line_writes_the_page(tmp_path, capsys, monkeypatch):
    pytest.importorskip("PIL")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "vit.npz", "vit")
    write_image(tmp_path / "x.png")
    assert main(["vit.npz", "x.png", "--html"]) == 0
    assert capsys.readouterr().out == "explore.html  page to explore what the model sees\n"
    assert "vit_nano_cifar" in Path("explore.html").read_text(encoding="utf-8")
    assert main(["vit.npz", "x.png", "--html", "new/a.html"]) == 0 and Path("new/a.html").exists()
    capsys.readouterr()
    for arguments, message in (
        (["--html", "x.png"], "--html writes a file that ends in .html, got x.png: give --html after the images"),
        (["--html"], "give at least one image"),
    ):
        assert main(["vit.npz", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_model_without_classes_has_no_prediction():
    data = collected("dinov2", num_classes=0)[2]
    assert [image["prediction"] for image in data["images"]] == [[], []]


# Functions of the JavaScript ------------------------------------------------------------------------------------------


def javascript(expression):
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    code = f"const page = require({json.dumps(str(PAGE / 'page.js'))}); console.log(JSON.stringify({expression}))"
    result = subprocess.run([node, "-"], input=code, check=True, capture_output=True, text=True)
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("size", "M", "shift"), [((12, 12), (4, 4), (2, 2)), ((8, 12), (4, 6), (2, 0)), ((8, 8), (4, 4), (0, 0))]
)
def test_windows_and_masks_of_the_page(size, M, shift):
    layer = {"grid": size, "window": {"size": M, "padded": size, "shift": shift}}
    patches = [[i, j] for i in range(size[0]) for j in range(size[1])]
    text = f"(l => {json.dumps(patches)}.map(p => [page.windowOf(l, p), page.regionOf(l, p)]))({json.dumps(layer)})"
    found = javascript(text)
    places = window_places(*size, M, shift)
    region = [each for _, each in found]
    mask = shift_mask(*size, M, shift)[:, 0]
    for k, (keys, _) in enumerate(found):
        window, row = np.argwhere(places == k)[0]
        keys = [i * size[1] + j for i, j in keys]
        assert keys == places[window].tolist()
        assert [region[key] == region[k] for key in keys] == (mask[window, row] == 0).tolist()


def test_rows_of_attention_of_the_page():
    model, x, data, _ = collected("vit")
    layer = data["layers"][1]
    text = """((d, l) => {
        const s = {attention: page.bytesOf(l.images[1].attention),
                   scales: new Float32Array(page.bytesOf(l.images[1].scales).buffer)};
        const q = page.queryOf(l, d.tokens.length, [2, 5]);
        return [q, page.headMaps(l, s, d, q.index, q.patch, [3])];
    })"""
    query, [found] = javascript(f"{text}({json.dumps(data)}, {json.dumps(layer)})")
    A = model.attention_maps(x[1:])[1].numpy()[0, 3, 1 + 2 * 8 + 5]
    assert query == {"index": 1 + 2 * 8 + 5, "patch": [2, 5]}
    np.testing.assert_allclose([*found["tokens"], *found["map"]], A, atol=A.max() / 500)


def test_scales_and_places_of_the_page():
    assert javascript("page.nearest([1, 4, 7], 5)") == 1
    assert javascript("page.rangeOf([[NaN, 2], [0.5, NaN]])") == [0.5, 2]
    assert javascript("[0, 0.5, 1].map(page.heatColour)") == [[10, 7, 34], [188, 55, 84], [252, 255, 164]]
    assert javascript("[-1, 0, 1].map(page.signedColour)") == [[33, 102, 172], [247, 247, 247], [178, 24, 43]]
    layer = '{"grid": [5, 6], "cell": [8, 8]}'
    assert javascript(f"page.patchAt({layer}, [36, 44], page.placeOf({layer}, [36, 44], [4, 5]))") == [4, 5]
    words = "Words that fill more than a line of sixty characters, and then\nend."
    assert javascript(f"page.paragraphsOf({json.dumps(words)}" + r""" + "\n\n    y = x\n      + z\n\na = b")""") == [
        {"asIs": False, "text": words.replace("\n", " ")}, {"asIs": True, "text": "y = x\n  + z"},
        {"asIs": False, "text": "a = b"},
    ]  # fmt: skip


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    installed = next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as program:
        try:
            started = program.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except playwright.Error:
            pytest.skip("needs a Chromium")
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path):
    """A function that opens a page of a model; at the end there must have been no error and no request."""
    problems = []

    def opened(family, width=800, scheme="light", **options):
        file = tmp_path / "page.html"
        file.write_text(collected(family, **options)[3], encoding="utf-8")
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda r: r.url.startswith(("file:", "data:")) or problems.append(r.url))
        tab.goto(file.as_uri())
        return tab

    yield opened
    assert problems == []


COLOURS = """(() => {
    const copy = Object.assign(document.createElement("canvas"), {width: 99, height: 99}).getContext(
        "2d", {willReadFrequently: true});
    copy.drawImage(document.getElementById("picture"), 0, 0, 99, 99);
    return new Set(new Uint32Array(copy.getImageData(0, 0, 99, 99).data.buffer)).size;
})()"""


def status(tab):
    tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return tab.inner_text("#status")


def test_keys_change_patch_layer_head_view_and_image(opened):
    tab = opened("vit")
    assert "Patch in row 5, column 5 of 8 x 8. Mean of the heads" in status(tab)
    for key, part in (
        ("ArrowUp", "row 4, column 5"), ("ArrowLeft", "row 4, column 4"), ("ArrowDown", "row 5, column 4"),
        ("ArrowRight", "row 5, column 5"), ("h", "Head 1"), ("h", "Head 2"),
    ):  # fmt: skip
        tab.keyboard.press(key)
        assert part in status(tab)
    assert tab.inner_text("#layer-name") == "2 of 2: blocks.1 (Block)"
    for key, name in (("-", "blocks.0"), ("-", "blocks.0"), ("+", "blocks.1"), ("+", "blocks.1")):
        tab.keyboard.press(key)
        assert name in tab.inner_text("#layer-name")
    tab.keyboard.press("v")
    assert "Rollout: most to" in status(tab) and "rollout" in tab.inner_text("#docs h3")
    tab.keyboard.press("i")
    assert tab.get_attribute("#picture", "aria-label") == "1.png, rollout"
    tab.focus("#layer")
    tab.keyboard.press("ArrowLeft")
    assert "blocks.0" in tab.inner_text("#layer-name")


def test_pointer_selects_and_a_click_keeps_the_patch(opened):
    tab = opened("vit")
    box = tab.locator("#picture").bounding_box()

    def at(row, column):
        return box["x"] + (column - 0.5) * box["width"] / 8, box["y"] + (row - 0.5) * box["height"] / 8

    tab.mouse.move(*at(2, 7))
    assert "row 2, column 7" in status(tab)
    tab.mouse.click(*at(3, 1))
    tab.mouse.move(*at(8, 8))
    assert "row 3, column 1" in status(tab) and "Kept" in status(tab)
    tab.mouse.click(*at(4, 4))
    tab.mouse.move(*at(8, 8))
    assert "row 8, column 8" in status(tab)
    tab.get_by_role("button", name="from the class token").click()
    assert status(tab).startswith("The class token. ")
    tab.get_by_role("button", name="head 3").click()
    assert "Head 3" in status(tab)


def test_status_has_the_values_of_the_model(opened):
    model, x, _, _ = collected("vit")
    tab = opened("vit")
    tab.keyboard.press("h")
    A = model.attention_maps(x[:1])[1].numpy()[0, 0, 1 + 4 * 8 + 4]
    row, column = divmod(int(A[1:].argmax()), 8)
    digits = 2 if A[1:].max() < 0.0995 else 1
    assert f"most to row {row + 1}, column {column + 1}, {100 * A[1:].max():.{digits}f} %" in status(tab)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (800, "dark"), (1920, "light")])
def test_every_view_of_every_layer_is_drawn(family, width, scheme, opened):
    tab = opened(family, width, scheme)
    layers = int(tab.get_attribute("#layer", "max")) + 1
    for _ in range(layers):
        for view in range(tab.locator("#views button").count()):
            tab.locator("#views button").nth(view).click()
            assert status(tab)
            assert tab.evaluate(COLOURS) > 2  # the picture is not blank: it has the outline, at least, and one cell
        tab.keyboard.press("-")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_swin_shows_window_shift_and_mask(opened):
    tab = opened("swin")
    tab.keyboard.press("-")
    assert "Windows of 4 x 4, shifted by 2 and 2; crossed out: masked" in status(tab)
    tab.keyboard.press("-")
    assert "Windows of 4 x 4, not shifted" in status(tab)


def test_convnext_shows_kernels_and_field(opened):
    tab = opened("convnext")
    assert "Channel 1: a kernel of 5 x 5 patches. Receptive field: 44 x 44 pixels" in status(tab)
    tab.keyboard.press("h")
    assert "Channel 2" in status(tab)
    assert tab.locator("#maps button").count() == 64


def test_theme_follows_the_system_and_the_button(opened):
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = opened("vit"), opened("vit", scheme="dark")
    colours = [light.evaluate(background), dark.evaluate(background)]
    assert colours[0] != colours[1]
    for tab, other in ((light, colours[1]), (dark, colours[0])):
        tab.click("#theme")
        assert tab.evaluate(background) == other


def test_hostile_names_are_shown_as_text(opened):
    tab = opened("vit", names=[HOSTILE, "b"], classes=[f"{HOSTILE}{i}" for i in range(len(CLASSES))])
    assert "<img src=x onerror=alert(1)>" in tab.inner_text("#images button >> nth=0")
    assert tab.inner_text("#classes tr >> nth=0 >> th").startswith("</script><img")
    assert tab.locator("img").count() == 0


# Fonts ----------------------------------------------------------------------------------------------------------------


def test_characters_without_a_font_are_escaped(monkeypatch):
    pytest.importorskip("matplotlib")
    assert fonts.drawable("naïve λ") == "naïve λ" and fonts.drawable("a\n\udc80") == "a\\n\\udc80"
    monkeypatch.setattr(fonts, "_characters", lambda: frozenset(map(ord, "ab汽")))
    assert fonts.drawable("ab汽车") == "ab汽\\u8f66"
