"""`spectrim bench` on saved runs and on two networks, and --target of the other commands."""

import json

import pytest

import lines
import spectrim as st
from spectrim import cli
from spectrim.cli.targets import TARGETS, RuntimeOptions

QUICK = ["--target", "torch", "--seconds", "0.01"]


def test_a_saved_run_on_torch(world, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(world)
    line = [
        "bench",
        "run",
        *QUICK,
        "--threads",
        "1,2",
        "--batch",
        "1,3",
        "--out",
        f"{tmp_path}/bench.json",
        "--plot",
        f"{tmp_path}/b.svg",
    ]
    assert cli.main(line) == 0
    shown = capsys.readouterr()
    found = st.Bench.from_json((tmp_path / "bench.json").read_text())
    assert [row.model for row in found.rows] == 4 * ["original", "compressed"]
    assert [(row.target["threads"], row.batch) for row in found.rows[::2]] == [("1", 1), ("1", 3), ("2", 1), ("2", 3)]
    assert shown.out == f"{found}\n" and "bench.json" in shown.err and (tmp_path / "b.svg").stat().st_size > 1000


def test_two_networks_and_json(world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    assert cli.main(["bench", "nets.py:build", "nets.py:five", "--input", "2,3,8,8", *QUICK, "--json", "--batch", "2"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["model"] for row in rows] == ["build", "five"] and rows[1]["verdict"]["word"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run", "--target", "abacus"], "--target: there is no runtime 'abacus'; allowed are onnxruntime, openvino, torch"),
        (["run", "--threads", "0"], "--threads is '0'; it must be whole numbers of at least 1 with commas, such as 1,8"),
        (["run", "--batch", "1,x"], "--batch is '1,x'; it must be whole numbers"),
        (["run", "--seconds", "0"], "--seconds is 0; it must be above 0"),
        (["run", "--out", "nowhere/bench.json"], "the output 'nowhere/bench.json' cannot be written: its folder is not there"),
        (["run", "--plot", "bench.txt"], "the output 'bench.txt' has the ending '.txt'; it must be .png or .svg or .pdf"),
        (["run", "--out", "run/plan.json"], "the output 'run/plan.json' exists already"),
        (["nets.py:build"], "'nets.py:build' is one network; give a second one to compare it with"),
        (["nets.py:build", "nets.py:build"], "both networks are 'nets.py:build'; give another"),
        (["nothing"], "'nothing' is no saved result: it has no report.json"),
    ],
)
def test_wrong_lines_get_a_sentence(world, monkeypatch, capsys, words, text):
    monkeypatch.chdir(world)
    assert cli.main(["bench", *words, *([] if "--target" in words else ["--target", "torch"])]) == 2
    assert text in " ".join(capsys.readouterr().err.split())


WRONG = {
    "--target": [*lines.ODD, "torch,", "torch,abacus", "TORCH"],
    "--threads": [*(set(lines.ODD) - {"0"}), "0", "1,", "1.5", "1025", "9" * 30, "-1"],
    "--batch": [*(set(lines.ODD) - {"0"}), "0", ",", "1,1.5", "9" * 30, "-1"],
    "--seconds": ["", "nan", "inf", "-1", "1e99", "x"],
    "--input": ["", "1,3", "0,3,8,8", "1,3,9999999,9999999", "x"],
    "--device": ["warp", ""],
    "--plot": ["bench", "bench.abc", "nowhere/bench.png", "run/report.json/bench.png"],
    "--out": ["nowhere/bench.json", "run/report.json/bench.json", "run"],
}


@pytest.mark.parametrize("option", WRONG)
def test_wrong_words_get_a_sentence(world, monkeypatch, capsys, option):
    monkeypatch.chdir(world)
    before = sorted(world.rglob("*"))
    for word in WRONG[option]:
        words = {"--target": "torch", "--seconds": "0.01"} | {option: word}
        code = cli.main(["bench", "run", *(f"{name}={value}" for name, value in words.items())])
        text = capsys.readouterr().err
        assert code == 2, (word, text)
        said = [line for line in text.splitlines() if line.startswith("spectrim: ")]
        assert len(said) == 1 and "Traceback" not in text and 20 < len(said[0]) < 1500, (word, text)
        assert sorted(world.rglob("*")) == before, word


def test_runtimes_by_their_words():
    assert all(target.word == word for word, target in TARGETS.items())
    assert RuntimeOptions().chosen() is None and RuntimeOptions(threads=2).chosen() == st.Torch(threads=2)


@pytest.mark.parametrize("command", ["compress", "bench"])
def test_a_runtime_that_is_not_installed(world, monkeypatch, capsys, command):
    monkeypatch.chdir(world)
    monkeypatch.setattr("spectrim.targets.base.find_spec", lambda name: None)
    line = {"bench": ["bench", "run"], "compress": ["compress", "nets.py:build", "--data", "npz:test.npz", "--out", "new"]}
    more = ["--keep", "0.5"] if command == "compress" else []
    assert cli.main([*line[command], *more, "--target", "openvino"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert 'OpenVINO needs onnx and onnxscript and openvino, which are not installed: pip install "spectrim[openvino]"' in told
    assert not (world / "new").exists()


def test_the_report_is_timed_on_the_target(world, monkeypatch, tmp_path):
    monkeypatch.chdir(world)
    line = ["compress", "nets.py:build", "--data", "npz:test.npz", "--keep", "0.6", "--methods", "ChannelSVD"]
    assert cli.main([*line, "--target", "torch", "--threads", "2", "--out", str(tmp_path / "new")]) == 0
    report = st.Report.from_json((tmp_path / "new" / "report.json").read_text())
    assert report.target["threads"] == "2" and report.latency[0].clock == "wall" and report.verdict.pairs >= 8
    assert report.config["target"].startswith("Torch(threads=2")
