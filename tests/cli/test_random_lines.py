"""Random command lines, right and nearly right: the exit code says what happened, never a traceback, nothing of the user's is lost.

`SPECTRIM_EXAMPLES=2000 pytest tests/cli/test_random_lines.py` runs so many, other ones each time, and every word alone.
"""

import contextlib
import io
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as drawn
from safetensors.torch import load_file

import lines
import spectrim as st
from world import at_home, run

EXAMPLES = int(os.environ.get("SPECTRIM_EXAMPLES", "0"))
UNREAD = ("damaged", "huge", "holes", "paths", "texts")  # wrong only where that very image is read
USUAL = {"--batch": "128", "--weight-decay": "0.0001", "--smoothing": "0", "--crop": "4", "--distill": "0"}
TRAINED = ("--batch", "--optimizer", "--rate", "--weight-decay", "--smoothing", "--crop", "--no-flip", "--distill")
DISTORTED = {"--every": "200", "--warmup": "0", "--tighten": "0", "--replan": "0"}


def files_of(*folders):
    """What is in folders: every file with its bytes."""
    return {str(path): path.read_bytes() if path.is_file() else None for each in folders for path in each.rglob("*")}


def verdict(command, words, scramble):
    """Return whether a line is right, False if it is certainly wrong, None if that is not said here."""
    marks = [_mark(command, name, word, mark, words) for name, word, mark in words]
    given = {name: word for name, word, _ in words}
    if scramble is not None or False in marks or _contradiction(command, given):
        return False
    odd = {"--mean", "--std", "--input"} & set(given) - {"--input"} or any("imagefolder" in str(given.get(n)) for n in DATA)
    if "--reconstruct" in given:
        return None  # images may be too few
    if None in marks or ("--max-drop" in given and (odd or "--selection" in given)):
        return None  # scores may be those of guessing
    return True


DATA = ("--data", "--calibration", "--selection")


def _mark(command, name, word, mark, words):
    given = {name: word for name, word, _ in words}
    images = given.get("--images")
    if (
        name in DATA
        and any(part in word for part in UNREAD)
        and (name != "--data" or images is not None or "--calibration" not in given)
    ):
        return None
    if command == "inspect" and name == "--input" and word in ("1,3,9,9", "2,3,8,8"):
        return None
    if name == "--exclude" and not {"--keep", "--max-drop"} & set(given):
        return None
    if word == "None" and name in ("--optimizer", "--images", "--keep", "--max-drop", "--rate"):  # None is the usual one
        return None
    if (command == "train" and word.endswith("frozen")) or ("--plan" in given and word.endswith(("tuple_out", "dict_out"))):
        return False  # nothing to train; layers have other names
    if name == "--methods" and "--plan" in given and ":" in word:  # only imported
        return None
    if command == "demo" and name == "--out" and word == "{h}/taken":
        return None
    if command == "train" and name in DISTORTED and mark:
        return None
    if name == "--images" and command == "evaluate" and mark:
        return True
    return mark


def _contradiction(command, given):
    """Whether words do not go together, or one is missing."""
    names = set(given)
    if command not in ("compress", "train"):
        return False
    kinds = {"nets.py" in given[name] for name in DATA if name in given}
    changed = {name for name in TRAINED if name in given and given[name] != USUAL.get(name)}
    distorted = {name for name, usual in DISTORTED.items() if given.get(name, usual) != usual}
    epochs = given.get("--finetune-epochs", "0") != "0"
    return (
        len(kinds) > 1
        or (True in kinds and bool({"--mean", "--std", "--input"} & names))
        or ("--selection" in given and given["--selection"] in (given.get("--data"), given.get("--calibration")))
        or ("--plan" in names and bool({"--search", "--exclude"} & names or given.get("--multiple-of", "1") != "1"))
        or ("--plan" in names and "--methods" in names and ":" not in given["--methods"])
        or (command == "compress" and ({"--keep", "--max-drop"} <= names or not {"--keep", "--max-drop", "--plan"} & names))
        or (command == "compress" and ((changed and not epochs) or (epochs and "--calibration" not in names)))
        or ("--mirror" in names and "--reconstruct" not in names)
        or (command == "compress" and "--selection" in names and not epochs and "--max-drop" not in names)
        or (command == "train" and ({"--keep", "--plan"} <= names or "--calibration" not in names))
        or (command == "train" and "--every" not in names and ("--plan" in names or given.get("--keep", "1") != "1"))
        or (command == "train" and bool(distorted) and not {"--keep", "--plan"} & names)
    )


def typed(command, words, scramble, places):
    """Return the line as it is typed."""
    parts = [(name, word.replace("{w}", places[0]).replace("{h}", places[1])) for name, word, _ in words]
    flags = [name for name, entries in lines.OPTIONS[command].items() if entries is lines.FLAG]
    if scramble == "missing":
        names = ("", "--data", "--out") if command in ("compress", "train") else ("",)
        needed = [part for part in parts if part[0] in names]
        parts = [part for part in parts if part != needed[-1]] if needed else [*parts, ("--nothing", "")]
    if scramble == "repeat":
        values = [part for part in parts if part[0] and part[0] not in (*flags, "--exclude", "--track")]
        parts = [*parts, values[0]] if values else [*parts, ("--json", ""), ("--json", "")]
    line = [command]
    for name, word in parts:
        line += (
            [word] if not name else [name] if name in flags else [f"{name}={word}"] if word.startswith("-") else [name, word]
        )
    ends = {"valueless": "--out" if command == "demo" else "--methods" if command == "evaluate" else "--weights"}
    more = {"unknown": ["--colour", "red"], "misspelt": ["--jsn"], "extra": ["more"]}
    return line + more.get(scramble, [ends[scramble]] if scramble in ends else [])


def check_sentence(code, text, words):
    """What is said to the user is a sentence of ours, and the last line."""
    assert "Traceback" not in text and "SPECTRIM_TRACEBACK" not in text, text
    if code == 0:
        return
    said = [line for line in text.splitlines() if line.startswith("spectrim: ")]
    assert len(said) == 1 and text.splitlines()[-1] == said[0], text
    assert 20 < len(said[0]) < 1500 and "[Errno" not in said[0].split(" raised ")[0], said[0]
    assert "evaluate raised" not in said[0], said[0]


def check_result(out, given, report):
    """A folder with everything, made with what was typed."""
    plan = st.Plan.from_json((out / "plan.json").read_text())
    small = st.load(out, _built(given[""]))
    found = st.cost(small, torch.zeros(_shape(given)))
    assert found == report.after and load_file(out / "model.safetensors")
    kept = dict(zip(("params", "macs"), report.kept, strict=True))[given.get("--metric", "macs")]
    if "--keep" in given:
        assert kept <= float(given["--keep"]) + 1e-9
        budget = st.Keep(float(given["--keep"]), given.get("--metric", "macs"))
        assert report.budget == str(budget)
    if "--max-drop" in given and report.selection is not None and "--plan" not in given:
        assert report.selection.drop <= float(given["--max-drop"]) + 1e-9
    tests = next(
        (count for name, count in lines.COUNTS.items() if f"/{name}." in given["--data"] or given["--data"].endswith(name)),
        None,
    )
    if "--calibration" in given and tests is not None and report.test is not None:
        assert report.test.examples == tests
    if "--images" in given:
        assert report.images <= int(given["--images"])
    recorded = {name: report.arguments.get(name) for name in given if name in report.arguments}
    for name, value in recorded.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            assert float(value) == float(given[name]), name
        elif isinstance(value, str):
            assert value == given[name], name
    if "," not in given.get("--methods", ",") and "--plan" not in given:
        assert {type(option.method).__name__ for option in plan.values()} <= {given["--methods"]}
    assert not set(plan) & ({given["--exclude"]} if "--exclude" in given else set())
    if "--multiple-of" in given and "--plan" not in given:
        ranks = [
            rank for option in plan.values() for rank in (option.rank if isinstance(option.rank, tuple) else (option.rank,))
        ]
        assert all(rank % int(given["--multiple-of"]) == 0 for rank in ranks)


def _built(spec):
    from spectrim.cli.models import make_model

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return make_model(spec)


def _shape(given):
    return tuple(int(number) for number in given.get("--input", "1,3,8,8").split(","))


@settings(
    max_examples=EXAMPLES or 30,
    phases=(Phase.generate,),
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
@given(line=lines.lines(), seed=drawn.integers(0, 2**31))
def test_random_lines(world, line, seed):
    command, words, scramble = line
    torch.manual_seed(seed)
    check_line(world, command, words, scramble)


def check_line(world, command, words, scramble=None):
    """Run a line, and hold it to all that is promised."""
    with at_home(world) as home:
        arguments = typed(command, words, scramble, (str(world), str(home)))
        note(f"{command} {words} {scramble}")
        before = files_of(world, home)
        code, out, err = run(arguments)
        after = files_of(world, home)
        assert {name: after.get(name) for name in before} == before, "a file of the user's was changed or removed"
        wanted = verdict(command, words, scramble)
        assert code in (0, 1, 2), err
        assert code != 2 or wanted is not True, err
        assert code or wanted is not False, (out, err)
        check_sentence(code, err, words)
        new = {name for name in after if name not in before}
        given = {name: word.replace("{w}", str(world)).replace("{h}", str(home)) for name, word, _ in words}
        if code or command in ("inspect", "evaluate"):
            assert not new, (code, err)
            return
        target = (home / given.get("--out", "out")).resolve()
        names = {"plan.json", "model.safetensors", "report.json"}
        if target != world / "run":
            assert all(Path(name).is_relative_to(target) or target.is_relative_to(name) for name in new), new
        assert names <= {path.name for path in target.iterdir()}
        report = st.Report.from_json((target / "report.json").read_text())
        if "--json" in given:
            assert st.Report.from_json(out) == report
        if command != "demo":
            check_result(target, given, report)


@pytest.mark.skipif(not EXAMPLES, reason="a quarter of an hour; SPECTRIM_EXAMPLES=1 runs it")
@pytest.mark.parametrize("command", lines.OPTIONS)
def test_every_word_alone(world, command):
    for budget in lines.BUDGETS.get(command, [{}])[:2]:
        start = {name: (word, True) for name, word in (lines.BASE[command] | budget).items()}
        tables = dict(lines.OPTIONS[command])
        if command in lines.ARGUMENT:
            start, tables[""] = {"": lines.ARGUMENT[command][0]} | start, lines.ARGUMENT[command]
        for name, entries in tables.items():
            for entry in entries:
                words = [(key, *value) for key, value in (start | {name: entry}).items()]
                check_line(world, command, words)
