"""A file imports only from lower levels; each says its own level in its first line."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("minigrad", "models", "train")
EXCEPTIONS = {"minigrad/methods/base.py": "minigrad/_tensor.py"}  # for annotations: each method returns a Tensor
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@cache
def level(path: Path) -> int:
    """The level in the docstring, 3 for `L3: ...`; a package's `__init__` is above its files."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    stated = re.match(r"L(\d): ", text)
    if path == ROOT / "minigrad" / "__init__.py":
        return 5  # the public names of L0 to L4
    assert stated, f"{path.relative_to(ROOT)} does not begin with its level, such as 'L2: ...'"
    return int(stated[1])


@cache
def imported(path: Path) -> list[Path]:
    """The project's files that `path` imports: at load time, at run time, by `import_module`, or for its types."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.relative_to(ROOT)}: relative import"
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [part if files(part) else node.module for part in parts]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        else:
            continue
        for name in names:
            found += files(name)
    allowed = EXCEPTIONS.get(str(path.relative_to(ROOT)))
    return [other for other in found if str(other.relative_to(ROOT)) != allowed]


def files(name: str) -> list[Path]:
    """The file of a module of this project."""
    stem = ROOT.joinpath(*name.split("."))
    return [p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    own = level(path)
    higher = [p for p in imported(path) if level(p) > own]
    assert not higher, f"L{own} imports from above: {[str(p.relative_to(ROOT)) for p in higher]}"


def test_every_package_is_installed():
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in FILES}
    assert set(named) == found


def test_there_are_no_cycles():
    graph = {path: imported(path) for path in FILES}
    done: set[Path] = set()

    def visit(path: Path, above: tuple[Path, ...]) -> None:
        assert path not in above, " -> ".join(str(p.relative_to(ROOT)) for p in (*above, path))
        if path not in done:
            for lower in graph[path]:
                if lower.parent / "__init__.py" != path:  # a package names its own files
                    visit(lower, (*above, path))
            done.add(path)

    for path in FILES:
        visit(path, ())


def test_ops_never_see_tensors():
    for path in (ROOT / "minigrad" / "ops").glob("*.py"):
        assert not re.search(r"minigrad\.(tensor|methods|functional|nn|optim)", path.read_text()), path


KERNELS = {
    ROOT / "minigrad" / "kernels": ROOT / "minigrad",
    ROOT / "models" / "cpu": ROOT / "models",
    ROOT / "train" / "data" / "cuda": ROOT / "train" / "data",
}
"""The folders with fast paths, and the packages whose import registers them."""


@pytest.mark.parametrize("kernels", KERNELS, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_package_imports_kernels(kernels):
    """Importing the package registers the fast paths. Other code finds them by `minigrad/backend/fast_paths.py`."""
    for path in FILES:
        if not KERNELS.keys() & set(path.parents) and path != KERNELS[kernels] / "__init__.py":
            found = [str(p.relative_to(ROOT)) for p in imported(path) if kernels in p.parents]
            assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_every_exception_is_needed():
    for path, allowed in EXCEPTIONS.items():
        assert f"from {allowed.removesuffix('.py').replace('/', '.')} import" in (ROOT / path).read_text()


def test_imports_by_name_are_seen(tmp_path, monkeypatch):
    module = ROOT / "minigrad" / "backend" / "arrays.py"
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda self: 'import_module("minigrad._tensor")\nif TYPE_CHECKING:\n    from minigrad import nn',
    )
    assert {p.parent.name for p in imported.__wrapped__(module)} == {"minigrad", "nn"}
