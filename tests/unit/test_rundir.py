import json
import os

import pytest

from grlo_lite import rundir
from grlo_lite.recipe import BadInput


def test_json_is_whole_or_absent_and_never_holds_nan(tmp_path):
    path = tmp_path / "a.json"
    rundir.write_json(path, {"é": 1})
    assert json.loads(path.read_text()) == {"é": 1}
    with pytest.raises(ValueError, match="JSON"):
        rundir.write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text()) == {"é": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_existing_run_directory_is_never_written_over(tmp_path):
    run = rundir.create(tmp_path / "r")
    with pytest.raises(BadInput, match="exists already; go on with it by --resume"):
        rundir.create(run.path)
    rundir.write_json(run.summary, {})
    with pytest.raises(BadInput, match="is finished already"):
        rundir.create(run.path)


def test_a_run_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be made"):
        rundir.create(tmp_path / "file" / "r")


def test_an_unused_run_directory_is_removed_and_a_used_one_kept(tmp_path):
    run = rundir.create(tmp_path / "r")
    run.recipe.write_text("x")
    rundir.discard_if_unused(run)
    assert not run.path.exists()
    run = rundir.create(tmp_path / "r")
    rundir.append_lines(run.metrics, [{"step": 1}])
    rundir.discard_if_unused(run)
    assert run.path.exists()


def test_checkpoints_are_adopted_whole_rotated_and_ordered_by_number(tmp_path):
    run = rundir.create(tmp_path / "r")
    for step in (8, 9, 10):
        written = run.checkpoints / f"checkpoint-{step}"
        written.mkdir()
        (written / "x").write_text(str(step))
        run.adopt_checkpoint(written, step, kept=2)
    assert [p.name for p in run.complete_checkpoints()] == ["step-9", "step-10"]
    assert sorted(os.listdir(run.checkpoints)) == ["step-10", "step-9"]


def test_lines_after_a_checkpoint_and_half_lines_are_cut(tmp_path):
    run = rundir.create(tmp_path / "r")
    rundir.append_lines(run.metrics, [{"step": s} for s in (1, 2, 3)])
    run.samples.write_text('{"step": 1}\n{"step": 2}\n{"step"')
    run.cut_lines_after(2)
    assert rundir.read_lines(run.metrics) == [{"step": 1}, {"step": 2}]
    assert rundir.read_lines(run.samples) == [{"step": 1}, {"step": 2}]


def test_what_cannot_be_resumed_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="no unfinished run"):
        rundir.to_resume(None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"has no recipe\.yaml"):
        rundir.to_resume(tmp_path / "empty")


def test_the_newest_unfinished_run_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, (name, finished) in enumerate([("new", True), ("middle", False), ("old", False)]):
        run = rundir.create(rundir.RUNS / name)
        run.recipe.write_text("x")
        if finished:
            rundir.write_json(run.summary, {})
        os.utime(run.path, (1000 - age, 1000 - age))
    assert rundir.to_resume(None).path.name == "middle"
