"""The rules of the house: exports, layers of imports, versions, documents."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

import spectrim

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "spectrim"
LEVELS = [  # imports go down or stay level, never up
    {"cli", "__main__"},
    {"_inputs", "demo", "testing", "integrations"},
    {"data", "zoo"},
    {"compress", "inspection", "train"},
    {"result", "cache", "calibration", "config"},
    {"accuracy", "probe", "maxdrop"},
    {"refit", "score", "search"},
    {"report", "page", "latency", "twin"},
    {"surgery", "statistics"},
    {"plan", "factorize", "harm", "survey"},
    {"layer"},
    {"cost"},
]


def modules():
    for path in SOURCE.rglob("*.py"):
        yield path, path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_all_is_sorted_and_complete():
    public = [name for name in vars(spectrim) if not name.startswith("_")]
    modules = {path.stem for path in SOURCE.rglob("*") if path.suffix in (".py", "")}
    own = {name for name in public if name not in modules or not hasattr(vars(spectrim)[name], "__path__")}
    exported = {n for n in own if getattr(vars(spectrim)[n], "__module__", "").startswith("spectrim")}
    assert exported == set(spectrim.__all__)
    assert spectrim.__all__ == sorted(spectrim.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))


def test_imports_go_one_way():
    level = {name: index for index, names in enumerate(LEVELS) for name in names}
    for path, home in modules():
        if home == "__init__":
            continue
        assert home in level, f"{path} has no place in the picture of the house"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("spectrim."):
                target = node.module.split(".")[1]
                assert level[target] >= level[home], f"{path.name} imports {node.module}, which is above it"


def test_files_and_functions_are_short():
    for path, _ in modules():
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                doc = (ast.get_docstring(node) or "").count("\n")
                assert node.end_lineno - node.lineno - doc <= 60, f"{path.name}: {node.name}"


def test_changelog_has_the_version():
    assert re.search(rf"^## {re.escape(spectrim.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_readme_shows_every_file():
    readme = (ROOT / "README.md").read_text()
    for _, home in modules():
        assert re.search(rf"\b{re.escape(home)}(\.py|/)", readme) or home in ("__init__", "__main__"), home


def test_readme_commands_are_those_of_ci_and_make():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert "\ntest:" in makefile and "\ndemo:" in makefile


def test_nothing_of_a_registry_or_a_machine_is_tracked():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    registries = ["py" + "pi.org", "python" + "hosted.org"]
    for name in done.stdout.split():
        path = ROOT / name
        assert path.stat().st_size < 5_000_000, name
        if path.suffix in (".py", ".md", ".toml", ".txt", ".yaml", ""):
            text = path.read_text()
            assert not any(word in text for word in registries), name
