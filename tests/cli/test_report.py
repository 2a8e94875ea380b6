"""`spectrim report`: a page again from its run, and several runs on one page."""

import json
import shutil

import pytest

import spectrim as st
from spectrim.cli.runs import TYPED, typed
from world import run


@pytest.fixture
def runs(world, tmp_path, monkeypatch):
    """Two runs in the current folder, without their pages; one has another date."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        shutil.copytree(world / "run", name)
        (tmp_path / name / "report.html").unlink()
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    (tmp_path / "two" / "report.json").write_text(json.dumps(report | {"date": "2020-02-01T10:00:00+00:00"}))
    return tmp_path


def test_a_page_is_made_again_from_its_run(runs):
    (runs / "two" / "report.html.txt").write_text("There is no HTML report")
    for _ in range(2):  # it is replaced
        code, out, err = run(["report", "two"])
        assert (code, out) == (0, "written: two/report.html\n") and err.endswith(" page done\n")
        html = (runs / "two" / "report.html").read_text()
        assert "<h1>Sequential on test.npz, compressed on 1 February 2020</h1>" in html
    assert not (runs / "two" / "report.html.txt").exists()
    assert run(["report", "one", "--out", "page.html"])[0] == 0
    assert "<h1>Sequential on test.npz" in (runs / "page.html").read_text() and not (runs / "one" / "report.html").exists()


def test_the_page_of_a_run_says_how_it_was_made(runs):
    source = st.Report.from_json((runs / "one" / "report.json").read_text()).source
    assert source.command.startswith("spectrim compress nets.py:build --data npz:test.npz --calibration npz:train.npz")
    assert run(["report", "one"])[0] == 0
    assert f"<pre>{source.command}</pre>" in (runs / "one" / "report.html").read_text()


def test_runs_are_compared(runs):
    assert run(["report", "one", "two"])[:2] == (0, "written: comparison.html\n")
    html = (runs / "comparison.html").read_text()
    assert "<h1>Sequential: 2 runs</h1>" in html and html.count('data-name="two"') == html.count('data-name="one"') > 10
    assert run(["report", "one", "two", "--out", "both.html"])[0] == 0 and (runs / "both.html").exists()
    shutil.copytree("one", "other/one")
    assert run(["report", "one", "other/one", "--out", "same.html"])[0] == 0
    assert f'data-name="{runs}/other/one"' in (runs / "same.html").read_text()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "RUN"),
        (["gone"], "'gone' is no saved result: it has no report.json"),
        (["one", "gone"], "'gone' is no saved result: it has no report.json"),
        (["one", "two", "one/"], "the run 'one' is given twice; name different folders"),
        (["{w}/broken"], "report.json' cannot be used: the report is no JSON"),
        (["{w}/letters"], "report.json' cannot be used: it is no text"),
        (["one", "two", "--out", "taken.html"], "the output 'taken.html' exists already; choose another name"),
        (["one", "--out", "page.txt"], "the output 'page.txt' has the ending '.txt'; it must be .html"),
        (["one", "--out", "nowhere/page.html"], "cannot be written: its folder is not there"),
    ],
)
def test_bad_lines_have_a_sentence(runs, world, words, match):
    (runs / "taken.html").write_text("mine")
    before = sorted(runs.rglob("*"))
    code, out, err = run(["report", *(word.format(w=world) for word in words)])
    assert code == 2 and not out and match in " ".join(err.split()) and err.startswith("spectrim: ") and "Traceback" not in err
    assert sorted(runs.rglob("*")) == before and (runs / "taken.html").read_text() == "mine"


def test_what_was_typed_is_what_a_shell_takes():
    TYPED.set(("compress", "a net.py:build", "--keep", "0.5", "--resume"))
    assert typed() == "spectrim compress 'a net.py:build' --keep 0.5"
