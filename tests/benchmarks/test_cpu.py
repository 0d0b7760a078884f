"""The benchmark of training and inference: its rows, its table, and JAX's functions, which equal minigrad's models."""

import json

import numpy as np
import pytest

import models
from minigrad import Tensor, no_grad, optim
from minigrad import functional as F
from models.compare import formula
from tests.benchmarks import cpu, sgemm
from tests.benchmarks.cpu import MODES, ROWS, Contender

SMALL = [
    ("vit_nano_cifar", {"depth": 2}),
    ("convnext_atto_cifar", {"depths": (1, 2, 1, 1), "dims": (8, 12, 16, 20)}),
]


@pytest.fixture
def jax_models():
    """JAX's functions, in float64."""
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    from tests.benchmarks import jax_models

    yield jax_models
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def no_process(monkeypatch):
    """Neither contenders nor products of BLAS are started; the load is 0 and all libraries are installed."""
    speeds = {"numpy": ("NumPy, OpenBLAS", 99.6), "torch": ("torch, MKL", 93.0), "jax": ("jax, XLA", 101.0)}
    monkeypatch.setattr(sgemm, "measure", speeds.__getitem__)
    monkeypatch.setattr(cpu, "load_of_machine", lambda: 0.0)
    monkeypatch.setattr(cpu, "find_spec", lambda name: True)
    monkeypatch.setattr(cpu, "measure", lambda row, mode, steps, names: {name: contender(name) for name in names})


def contender(name, seconds=0.4, cores=1.9):
    """A contender that has measured: minigrad takes half of the others' time."""
    made = Contender.__new__(Contender)
    half = 0.5 if name == "minigrad" else 1.0
    made.name, made.peak, made.seconds = name, int(1e9 * half), [seconds * half] * 5
    made.cpu_seconds, made.products = [cores * s for s in made.seconds], [0.75 * s for s in made.seconds]
    return made


def model_and_batch(name, overrides, count=2):
    model = formula.fill(models.create_model(name, **overrides))
    return model, formula.stream("images", count, 3, 32, 32), np.arange(count) % model.num_classes


def test_rows_are_models_with_modes():
    assert {row.model for row in ROWS} <= set(models.list_models())
    assert len({(row.model, row.batch) for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert set(row.modes) <= set(MODES)
        assert row.modes == (("infer",) if row.batch == 1 else MODES)
        assert row.steps > row.quick_steps != 1
        assert cpu.shards_of(row) == (1 if row.batch == 1 else 2)


def test_selected_rows():
    names = [row.model for row in ROWS]
    assert [row.batch for row in cpu.selected(["convnext_tiny"], [1, 8, 64], quick=False)] == [8, 1]
    assert cpu.selected(["convnext_tiny"], [1, 8, 64], quick=True) == []
    assert {row.batch for row in cpu.selected(names, [1], quick=False)} == {1}
    assert all(row.model.endswith("_cifar") for row in cpu.selected(names, [1, 64], quick=True))


def test_times_have_at_least_three_digits():
    assert cpu.median_and_quartiles([0.00512] * 3) == "5.12 (5.12-5.12)"
    assert cpu.median_and_quartiles([0.0987, 0.0987, 12.3456]) == "98.7 (98.7-12346)"


@pytest.mark.usefixtures("no_process")
def test_table(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "contenders_of", lambda row, others: ["minigrad", "torch", "plain", "compiled"])
    file = tmp_path / "times.json"
    flags = ["--rows", "vit_tiny_cifar", "--with", "plain", "compiled", "jax", "--json", str(file)]
    cpu.main(flags)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "  100  NumPy, OpenBLAS" in lines and "  101  jax, XLA" in lines
    names = ["vit_tiny_cifar, batch of 64", "vit_tiny_cifar, batch of 1"]
    assert [line for line in lines if line.startswith("vit")] == names
    rows = [line.split() for line in lines if line.startswith(("  train", "  infer"))]
    cells = ["200", "(200-200)", "400", "(400-400)", "0.50", "1.33", "0.50", "1.00", "1.00", "-"]
    assert rows == [["train", *cells], ["infer", *cells], ["infer", *cells]]
    stored = json.loads(file.read_text())
    assert [(row["batch"], row["work"]) for row in stored["rows"]] == [(64, "train"), (64, "infer"), (1, "infer")]
    assert stored["GFLOP/s"] == {"NumPy, OpenBLAS": 99.6, "torch, MKL": 93.0, "jax, XLA": 101.0}


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(
    ("missing", "load", "flags", "words"),
    [
        ("jax", 0.0, ["--with", "jax"], "pip install jax"),
        ("timm", 0.0, [], "pip install timm"),
        (None, 0.9, [], "with --busy"),
        (None, 0.0, ["--rows", "vit"], "invalid choice: 'vit'"),
        (None, 0.0, ["--quick", "--rows", "convnext_tiny"], "no row with --quick: models ['convnext_tiny']"),
        (None, 0.0, ["--batch", "2"], "invalid choice: 2 (choose from 1, 8, 64)"),
    ],
)
def test_what_cannot_be_measured_is_said(missing, load, flags, words, capsys, monkeypatch):
    monkeypatch.setattr(cpu, "find_spec", lambda name: None if name == missing else True)
    monkeypatch.setattr(cpu, "load_of_machine", lambda: load)
    with pytest.raises(SystemExit) as stopped:
        cpu.main(flags)
    assert stopped.value.code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "cores", "words"),
    [([1.0, 1.01], 1.9, "must be equal"), ([1.0, 1.0], 2.7, "minigrad used 2.7 cores")],
)
def test_unfair_contenders_are_refused(values, cores, words, monkeypatch):
    class Unfair:
        def __new__(cls, name, row, mode):
            made = contender(name, cores=cores)
            made.step, made.forget, made.close = lambda: values[name == "torch"], lambda: None, lambda: None
            return made

    monkeypatch.setattr(cpu, "Contender", Unfair)
    with pytest.raises(SystemExit, match=words):
        cpu.measure(ROWS[0], "infer", 0, ["minigrad", "torch"])


@pytest.mark.parametrize("program", [cpu, sgemm])
def test_help_has_80_columns(program, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        program.main(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_sgemm_of_numpy_in_a_new_process(monkeypatch):
    name, speed = sgemm.measure("numpy")
    assert name.startswith(f"NumPy {np.__version__}, ")
    assert 0.1 < speed < 1e4
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    _, line, variables = sgemm.table({name: speed})
    assert line.split(maxsplit=1) == [f"{speed:.0f}", name]
    assert variables.startswith("environment: ") and "OPENBLAS_CORETYPE=Haswell" in variables


# JAX ------------------------------------------------------------------------------------------------------------------


def test_jax_takes_part_in_vit_and_convnext(jax_models):
    models_of_jax = {row.model for row in ROWS if "jax" in cpu.contenders_of(row, ["jax"])}
    assert models_of_jax == {row.model for row in ROWS if row.model.startswith(("vit", "convnext"))}


@pytest.mark.parametrize(("name", "overrides"), SMALL)
def test_jax_logits_equal_minigrads(jax_models, name, overrides):
    model, images, _ = model_and_batch(name, overrides)
    logits = jax_models.compiled_forward(model)(jax_models.parameters(model), images)
    assert logits.dtype == np.float64
    with no_grad():
        np.testing.assert_allclose(logits, model(Tensor(images)).numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "overrides"), SMALL)
def test_jax_losses_equal_minigrads_in_three_steps(jax_models, name, overrides):
    model, images, labels = model_and_batch(name, overrides)
    state, step = jax_models.initial_state(model), jax_models.compiled_step(model, lr=1e-2)
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(Tensor(images)), Tensor(labels))
        loss.backward()
        optimizer.step()
        state, jax_loss = step(state, images, labels)
        assert float(jax_loss) == pytest.approx(loss.item(), rel=1e-7)
