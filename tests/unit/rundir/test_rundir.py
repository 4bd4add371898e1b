import json
import os

import pytest

from grlo_lite.errors import BadInput
from grlo_lite.rundir import checkpoints, files, layout
from grlo_lite.rundir.layout import RunDir
from grlo_lite.training import resuming


def test_json_is_whole_or_absent_and_never_holds_nan(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"é": 1})
    assert json.loads(path.read_text()) == {"é": 1}
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text()) == {"é": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_existing_run_directory_is_never_written_over(tmp_path):
    run = layout.create(tmp_path / "r", "microcosm", "x: 1\n")
    with pytest.raises(BadInput, match="exists already; go on with it by --resume"):
        layout.create(run.path, "microcosm", "x: 1\n")
    files.write_json(run.summary, {})
    with pytest.raises(BadInput, match="is finished already"):
        layout.create(run.path, "microcosm", "x: 1\n")


def test_a_run_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be made"):
        layout.create(tmp_path / "file" / "r", "microcosm", "x: 1\n")


def test_an_unused_run_directory_is_removed_and_a_used_one_kept(tmp_path):
    run = layout.create(tmp_path / "r", "microcosm", "x: 1\n")
    run.recipe.write_text("x")
    layout.discard_if_unused(run)
    assert not run.path.exists()
    run = layout.create(tmp_path / "r", "microcosm", "x: 1\n")
    files.append_lines(run.metrics, [{"step": 1}])
    layout.discard_if_unused(run)
    assert run.path.exists()


def checkpointed(tmp_path, scores, kept=2):
    """A run with a checkpoint a step, each with its score, and a line a step in its journals."""
    run = layout.create(tmp_path / "r", "microcosm", "x: 1\n")
    for step, score in scores.items():
        files.append_lines(run.metrics, [{"step": step}])
        files.append_lines(run.samples, [{"step": step}, {"step": step}])
        written = run.partial / f"checkpoint-{step}"
        (written / "folder").mkdir(parents=True)
        (written / "a.bin").write_bytes(bytes(range(200)))
        (written / "folder" / "b.json").write_text(f"[{step}]")
        run.adopt_checkpoint(written, step, kept, score)
    return run


def test_the_newest_checkpoints_and_the_best_are_kept_in_order_of_their_numbers(tmp_path):
    run = checkpointed(tmp_path, {7: 0.5, 8: None, 9: 0.2, 10: 0.3})
    assert [p.name for p in run.checkpoint_folders()] == ["step-7", "step-9", "step-10"]
    assert sorted(os.listdir(run.checkpoints)) == ["step-10", "step-7", "step-9"]
    assert checkpoints.damage(run.checkpoints / "step-10") is None


def test_journals_are_cut_to_the_length_that_the_checkpoint_knew(tmp_path):
    run = checkpointed(tmp_path, {1: 0.0, 2: 1.0})
    files.append_lines(run.metrics, [{"step": 3}])
    files.append_lines(run.guards, [{"step": 3}])
    with run.samples.open("a") as file:
        file.write('{"step')
    assert run.checkpoint_to_resume() == run.checkpoints / "step-2"
    assert files.read_lines(run.metrics) == [{"step": 1}, {"step": 2}]
    assert [line["step"] for line in files.read_lines(run.samples)] == [1, 1, 2, 2]
    assert not run.guards.exists()
    run.metrics.write_text('{"step": 1}\n')
    with pytest.raises(BadInput, match=r"metrics.jsonl has 12 bytes and the newest whole checkpoint knew 24"):
        run.checkpoint_to_resume()


def corrupted(file, how, at):
    data = file.read_bytes()
    if how == "truncated":
        file.write_bytes(data[: at % len(data)])
    elif how == "flipped":
        at %= len(data)
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
    elif how == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "missing"])
@pytest.mark.parametrize("name", ["a.bin", "folder/b.json", "manifest.json"])
def test_a_damaged_checkpoint_is_named_passed_over_and_put_aside(tmp_path, capsys, how, name):
    for attempt in range(9):
        run = checkpointed(tmp_path / str(attempt), {1: 0.0, 2: 1.0})
        corrupted(run.checkpoints / "step-2" / name, how, 31 * attempt + 7)
        assert run.checkpoint_to_resume() == run.checkpoints / "step-1"
        assert f"step-2 is damaged ({name}" in capsys.readouterr().out
        assert files.read_lines(run.metrics) == [{"step": 1}]
        assert sorted(os.listdir(run.checkpoints)) == ["damaged-step-2", "step-1"]


def test_a_run_without_a_whole_checkpoint_is_refused_and_left_as_it_is(tmp_path):
    run = checkpointed(tmp_path, {1: 0.0, 2: 1.0})
    corrupted(run.checkpoints / "step-2" / "a.bin", "missing", 0)
    corrupted(run.checkpoints / "step-1" / "a.bin", "truncated", 150)
    before = sorted(str(p) for p in run.path.rglob("*"))
    with pytest.raises(BadInput, match=r"step-2: a.bin is missing; step-1: a.bin has 150 of 200 bytes"):
        run.checkpoint_to_resume()
    assert sorted(str(p) for p in run.path.rglob("*")) == before


def test_a_checkpoint_of_two_processes_is_not_resumed_by_one(tmp_path):
    run = checkpointed(tmp_path, {1: 0.0})
    with pytest.raises(BadInput, match="was made by 1 processes and this run has 2"):
        run.checkpoint_to_resume(processes=2)


def test_the_best_adapter_is_the_one_that_the_checkpoint_knew(tmp_path):
    run = layout.create(tmp_path / "r", "microcosm", "")
    run.best_adapter.write_text("step 1")
    written = run.partial / "checkpoint-1"
    written.mkdir(parents=True)
    run.adopt_checkpoint(written, 1, 2, None)
    run.best_adapter.write_text("step 2, after the checkpoint")
    run.checkpoint_to_resume()
    assert run.best_adapter.read_text() == "step 1"


def test_what_cannot_be_resumed_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="no unfinished run"):
        layout.to_resume(None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"has no recipe\.yaml"):
        layout.to_resume(tmp_path / "empty")


def test_the_newest_unfinished_run_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, (name, finished) in enumerate([("new", True), ("middle", False), ("old", False)]):
        run = layout.create(layout.RUNS / name, "microcosm", "x: 1\n")
        run.recipe.write_text("x")
        if finished:
            files.write_json(run.summary, {})
        os.utime(run.path, (1000 - age, 1000 - age))
    assert layout.to_resume(None).path.name == "middle"


def test_another_machine_than_the_run_began_on_is_said(tmp_path, capsys):
    facts = {"prompts_sha256": "a", "template_sha256": "b", "versions": {"torch": "2"}, "device": "cpu"}
    facts |= {"driver": None, "threads": 1}
    run = RunDir(tmp_path)
    files.write_json(run.environment, facts)
    resuming.begin_or_resume(run, facts)
    assert "bit for bit" not in capsys.readouterr().out
    resuming.begin_or_resume(run, facts | {"threads": 2})
    assert "not bit for bit as it would have: threads 1, now 2\n" in capsys.readouterr().out
