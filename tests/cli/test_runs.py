import json
import sys

import spectrim
from commands import compressing, training
from spectrim import cli
from spectrim.cli.runs import Run


def test_interrupted_run_is_resumed(files, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    command = compressing(files, out, "--max-drop", "3", "--metric", "params", "--methods", "ChannelSVD")
    per_example, calls = spectrim.Accuracy.per_example, []

    def interrupting(self, model):
        calls.append(model)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return per_example(self, model)

    monkeypatch.setattr(spectrim.Accuracy, "per_example", interrupting)
    assert cli.main(command) == 130
    assert "--resume" in capsys.readouterr().err and not out.exists()
    kept = sorted((tmp_path / "run.partial").iterdir())
    assert kept
    assert cli.main(command) == 2
    assert "add --resume" in capsys.readouterr().err and sorted((tmp_path / "run.partial").iterdir()) == kept
    monkeypatch.delattr(sys.modules["spectrim.pipeline.prepare"], "Sweep")  # they are read, not computed again
    assert cli.main([*command, "--resume"]) == 0
    text = capsys.readouterr().out
    assert "top-1 on the selection images" in text and "whole network" in text
    assert json.loads((out / "report.json").read_text())["seconds"]["statistics"] > 0  # and counted
    assert not (tmp_path / "run.partial").exists()


def test_interrupted_before_anything_is_done(files, tmp_path, capsys, monkeypatch):
    def interrupting(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["spectrim.pipeline.prepare"], "Sweep", interrupting)
    assert cli.main(compressing(files, tmp_path / "run", "--keep", "0.5")) == 130
    error = capsys.readouterr().err
    assert "nothing is kept" in error and "--resume" not in error and not (tmp_path / "run.partial").exists()


def test_a_folder_of_the_user_is_not_taken_for_unfinished_work(files, tmp_path, capsys):
    (tmp_path / "run.partial").mkdir()
    note = tmp_path / "run.partial" / "notes.txt"
    note.write_text("mine")
    for command in (compressing(files, tmp_path / "run", "--keep", "0.5"), training(files, tmp_path / "run")):
        for more in ([], ["--resume"]):
            assert cli.main([*command, *more]) == 2
            assert "holds something else" in capsys.readouterr().err and note.read_text() == "mine"


def test_the_folder_where_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run.at(".", {}, resume=False)
    assert (run.target, run.partial) == (tmp_path, tmp_path.with_name(tmp_path.name + ".partial"))


def fail_in_the_refit(files, out, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["spectrim.pipeline.fitted"], "refit", full)
        assert cli.main(compressing(files, out, "--keep", "0.5")) == 2


def test_what_fails_by_itself_keeps_what_was_done(files, tmp_path, capsys, monkeypatch):
    fail_in_the_refit(files, tmp_path / "run", monkeypatch)
    assert "no space left on device; what was done is kept" in capsys.readouterr().err
    monkeypatch.delattr(sys.modules["spectrim.pipeline.prepare"], "Sweep")
    assert cli.main(compressing(files, tmp_path / "run", "--keep", "0.5", "--resume")) == 0


def test_a_finished_run_is_not_done_again(files, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    assert cli.main(compressing(files, out, "--keep", "0.5", "--json")) == 0
    first = capsys.readouterr().out
    monkeypatch.delattr(sys.modules["spectrim.pipeline.prepare"], "Sweep")
    assert cli.main([*compressing(files, out, "--keep", "0.5", "--json"), "--resume"]) == 0
    captured = capsys.readouterr()
    assert "is finished already; nothing was done" in captured.err and json.loads(captured.out) == json.loads(first)
    assert cli.main([*compressing(files, out, "--keep", "0.4"), "--resume"]) == 2
    assert "had other arguments (--keep 0.5, now 0.4)" in " ".join(capsys.readouterr().err.split())


def test_other_arguments_of_an_interrupted_run_are_named(files, tmp_path, capsys, monkeypatch):
    fail_in_the_refit(files, tmp_path / "run", monkeypatch)
    capsys.readouterr()
    for more in ([], ["--resume"]):
        assert cli.main(compressing(files, tmp_path / "run", "--keep", "0.4", "--exclude", "stem*", *more)) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "had other arguments (--keep 0.5, now 0.4, --exclude not given, now ['stem*'])" in error
    assert cli.main(compressing(files, tmp_path / "run", "--keep", "0.5")) == 2
    assert "add --resume to go on with it" in capsys.readouterr().err
    assert cli.main(compressing(files, tmp_path / "run", "--keep", "0.5", "--resume")) == 0


def test_leftovers_of_a_failed_start_hide_nothing(files, tmp_path, capsys):
    """A start that was killed leaves its arguments, and perhaps a file that was being written, and no finished piece."""
    partial = tmp_path / "run.partial"
    partial.mkdir()
    (partial / "arguments.json").write_text('{"--keep": 0.9}')
    (partial / "abc.12.partial").write_bytes(b"half")
    wrong = compressing(files, tmp_path / "run", "--keep", "0.5", "--exclude", "fc*")
    assert cli.main(wrong) == 2
    assert "matches no layer" in capsys.readouterr().err
    assert cli.main(compressing(files, tmp_path / "run", "--keep", "0.5")) == 0
    assert not partial.exists()
