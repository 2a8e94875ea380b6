"""The pages of docs/: their code runs, their commands are understood, their tables are those of the results."""

import ast
import json
import re
import runpy
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from markdown_it import MarkdownIt
from torch import nn

import spectrim as st
from spectrim import cli
from spectrim.targets.timing import interleaved

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
READABLE = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
SKIP = re.compile(r"<!-- not run: (.+?) -->", re.S)


@dataclass
class Block:
    """A fenced block of a page: its language, its text, the line before its first, and why it is not run."""

    language: str
    text: str
    line: int
    skipped: str = ""


def blocks(page):
    """Read the fenced blocks of a page; a comment `not run: why` before one says that it is not run."""
    found, reason = [], ""
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence":
            found.append(Block(token.info, token.content, token.map[0] + 1, reason))
        if token.type in ("fence", "html_block"):
            reason = (SKIP.match(token.content) or [""] * 2)[1] if token.type == "html_block" else ""
    return found


def make_model():
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(24, 32, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


@pytest.fixture
def own(monkeypatch):
    """What docs/index.md says that a reader has: names that every page may use. Nothing is timed for long."""
    monkeypatch.setitem(interleaved.__kwdefaults__, "seconds", 0.02)
    images, labels = torch.randn(96, 3, 16, 16), torch.randint(0, 10, (96,))
    loader = list(zip(images.split(32), labels.split(32), strict=True))
    return {
        **{"model": make_model().eval(), "make_model": make_model, "example": images[:1]},
        **{"images": images, "labels": labels, "loader": loader, "validation": loader[:1], "__name__": "page"},
    }


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_in_order(page, own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for block in blocks(page):
        assert block.language not in ("py", "Python"), "python is the word that this test looks for"
        if block.language == "python" and not block.skipped:
            if name := re.match(r"# (\w+\.py)\n", block.text):
                Path(name[1]).write_text(block.text)
            tree = ast.increment_lineno(ast.parse(block.text), block.line)
            exec(compile(tree, str(page), "exec"), own)


@pytest.mark.parametrize("page", READABLE, ids=lambda page: page.stem)
def test_commands_of_a_page_are_understood(page):
    for block in blocks(page):
        for line in block.text.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ")
            if line.startswith("spectrim ") and block.language != "python":
                words = shlex.split(line, comments=True)
                cli.app.parse_args(words[1:], exit_on_error=False, print_error=False)


def test_the_reference_lists_every_public_name():
    listed = re.findall(r"^\.\. auto\w+:: spectrim\.(\w+)$", (ROOT / "docs" / "api.rst").read_text(), re.M)
    assert sorted(listed) == sorted(st.__all__)


def test_troubleshooting_quotes_what_is_said():
    trees = [ast.parse(path.read_text()) for path in (ROOT / "src").rglob("*.py")]
    texts = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    said = "\n".join(text for text in texts if isinstance(text, str))
    messages = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.M)
    assert len(messages) > 50
    parts = [part for message in messages for part in re.split(r"\s*\.\.\.\s*", message)]
    assert not [part for part in parts if part not in said]


def test_pictures_are_those_of_the_script():
    script = runpy.run_path(str(ROOT / "docs" / "pictures" / "draw.py"))
    for name in script["PICTURES"]:
        assert (ROOT / "docs" / "pictures" / f"{name}.svg").read_text() == script["picture"](name), name


def groups(found):
    """Collect what results say in one place: the numbers of each dictionary, and of each list."""
    items = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    numbers = [item for item in items if isinstance(item, (int, float)) and not isinstance(item, bool)]
    return [numbers] * bool(numbers) + [group for item in items for group in groups(item)]


def told(number, text):
    """Say whether a number, or a fraction in per cent, is what a page tells in so many digits."""
    unit = 10.0 ** -len(text.partition(".")[2])
    return any(abs(scale * number - float(text)) <= 0.501 * unit for scale in (1, 100))


NUMBER = r"(-?\d+(?:\.\d+)?)"
MEASURED = re.compile(rf"{NUMBER} \+- {NUMBER}(?: \({NUMBER}\))?|{NUMBER} \({NUMBER} to {NUMBER}\)")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_numbers_with_errors_in_tables_are_those_of_one_measured_cell(page):
    results = [json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")]
    cells = [group for result in results for group in groups(result)]
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
    wrong = []
    for found in (found for row in rows for found in MEASURED.finditer(row)):
        texts = [text for text in found.groups() if text is not None]
        if not any(all(any(told(number, text) for number in cell) for text in texts) for cell in cells):
            wrong.append(found[0])
    assert not wrong
