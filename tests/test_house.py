"""The rules of the house: exports, floors, circles, sizes, versions, documents."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import spectrim

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "spectrim"
FLOORS = [  # from the top; a file imports from lower floors and from its own room only
    ("__main__",),
    ("cli",),
    ("demo", "integrations", "testing"),
    ("pipeline",),
    ("report", "train"),
    ("refit",),
    ("sensitivity", "targets"),
    ("network",),
    ("search", "factorize"),
    ("core",),
    ("version",),
]
FILES = {path.relative_to(SOURCE).with_suffix(""): path for path in sorted(SOURCE.rglob("*.py"))}


def module_name(place):
    """spectrim.core.cost of core/cost, spectrim.core of core/__init__."""
    parts = [part for part in place.parts if part != "__init__"]
    return ".".join(("spectrim", *parts))


MODULES = {module_name(place): place for place in FILES}


def imports(place):
    """Every module of the package that a file imports, also inside functions; names of a package count as its modules."""
    found = set()
    for node in ast.walk(ast.parse(FILES[place].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "spectrim":
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & set(MODULES)) or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "spectrim"}
    return found


def room(place):
    return place.parts[0]


def test_all_is_sorted_and_complete():
    public = {name: value for name, value in vars(spectrim).items() if not name.startswith("_")}
    own = {name for name, value in public.items() if getattr(value, "__module__", "").startswith("spectrim")}
    assert own == {name for name in spectrim.__all__ if name != "Rank"}
    assert spectrim.__all__ == sorted(spectrim.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))


def test_every_room_is_on_a_floor():
    assert {room(place) for place in FILES} - {"__init__"} == {name for names in FLOORS for name in names}


@pytest.mark.parametrize("place", [place for place in FILES if place.parts != ("__init__",)], ids=str)
def test_imports_go_down(place):
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for module in imports(place):
        if module == "spectrim":
            assert room(place) == "cli", f"{place} imports the whole package"
            continue
        target = room(MODULES[module]) if module in MODULES else module.split(".")[1]
        lower = floor[target] > floor[room(place)]
        assert lower or target == room(place), f"{place} imports {module}, which is beside or above it"


@pytest.mark.parametrize("place", FILES, ids=str)
def test_no_comprehension_hides_a_name_of_its_file(place):
    """From Python 3.12 on such a name is the function's own for the whole function: reading the hidden one there fails."""
    tree = ast.parse(FILES[place].read_text())
    names = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    names |= {alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    bound = [target for node in ast.walk(tree) if isinstance(node, ast.comprehension) for target in ast.walk(node.target)]
    assert not names & {node.id for node in bound if isinstance(node, ast.Name)}


def test_no_circle_between_files():
    graph = {place: {MODULES[module] for module in imports(place) if module in MODULES} - {place} for place in FILES}
    graph.pop(Path("__init__"))
    graph = {place: {other for other in others if other in graph} for place, others in graph.items()}
    while free := [place for place, others in graph.items() if not others]:
        for place in free:
            del graph[place]
        for others in graph.values():
            others.difference_update(free)
    assert not graph, f"files import each other in a circle: {sorted(map(str, graph))}"


def test_files_and_functions_are_short():
    for place, path in FILES.items():
        text = path.read_text()
        assert len(text.splitlines()) <= 400, place
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                doc = (ast.get_docstring(node) or "").count("\n")
                assert node.end_lineno - node.lineno - doc <= 60, f"{place}: {node.name}"


def test_methods_are_two_levels_deep():
    """Interface and final class: nothing of ours overrides a written method of a decomposition or rank selection."""
    for base in (spectrim.Factorization, spectrim.Search):
        for kind in base.__subclasses__():
            if kind.__module__.startswith("spectrim."):
                assert not [below for below in kind.__subclasses__() if below.__module__.startswith("spectrim.")]


def test_importing_brings_in_nothing_slow():
    slow = (
        "scipy",
        "matplotlib",
        "bokeh",
        "jinja2",
        "pyarrow",
        "PIL",
        "cyclopts",
        "torchvision",
        "timm",
        "lightning",
        "transformers",
    )
    code = f"import sys, torch; before = set(sys.modules); import spectrim; print(*(set(sys.modules) - before) & set({slow!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.split()


def test_the_package_says_that_it_is_typed():
    assert (SOURCE / "py.typed").exists()


def test_changelog_has_the_version():
    assert re.search(rf"^## {re.escape(spectrim.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_the_map_shows_every_file():
    shown = (ROOT / "docs" / "architecture.md").read_text()
    for place in FILES:
        if place.name not in ("__init__", "__main__"):
            assert re.search(rf"\b{re.escape(place.name)}\b", shown), f"docs/architecture.md does not name {place}"
        assert room(place) in shown or room(place).startswith("__")


def test_readme_commands_are_those_of_ci_and_make():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert "\ntest:" in makefile and "\ndemo:" in makefile


def test_readme_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())
    assert not [target for target in targets if not target.startswith("https://") and not (ROOT / target).is_file()]


def test_nothing_of_a_registry_or_a_machine_is_tracked():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    registries = ["py" + "pi.org", "python" + "hosted.org"]
    for name in done.stdout.split():
        path = ROOT / name
        if not path.exists():  # removed, and not committed yet
            continue
        assert path.stat().st_size < 5_000_000, name
        if path.suffix in (".py", ".md", ".toml", ".txt", ".yaml", ""):
            text = path.read_text()
            assert not any(word in text for word in registries), name
