"""A run survives: kills at any moment, damaged checkpoints, out of memory, full and read-only disks, other clocks."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from trl import GRPOTrainer

from grlo_lite import train
from grlo_lite.cli import run_command
from grlo_lite.evaluation import end_of_run
from grlo_lite.generation.decoding import Slots
from grlo_lite.models.reward_model import RewardModel
from grlo_lite.rundir import checkpoints, files, layout
from grlo_lite.rundir.layout import RunDir
from grlo_lite.training import loop

WORDS = (
    "budget.checkpoint_every=1",
    "evaluation.suite=none",
    "evaluation.heldout_prompts=0",
    "algorithm.updates_per_rollout=1",
)


def summary(path):
    return json.loads((path / "summary.json").read_text())


def steps(path):
    return [line["step"] for line in files.read_lines(path / "metrics.jsonl")]


def written_steps(path):
    """How many of a run that is going on, whose last line may be half written."""
    metrics = path / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def in_process(*words):
    """The command in this process, which spares it the seconds of importing; its exit code."""
    return run_command(lambda: train.main([str(word) for word in words]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of six steps."""
    path = tmp_path_factory.mktemp("whole") / "r"
    assert in_process("--run-dir", path, *WORDS, "budget.steps=6") == 0
    return path


@pytest.fixture
def unfinished(whole, tmp_path):
    """A copy, at another place, of the whole run as it was when it was cut off just before its end."""
    path = tmp_path / "elsewhere" / "copied"
    shutil.copytree(whole, path)
    for name in ("summary.json", "evaluation.json"):
        (path / name).unlink()
    shutil.rmtree(path / "adapter")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_kills_at_random_moments_change_nothing(whole, tmp_path, algorithm):
    words = [*WORDS, "budget.steps=6", f"algorithm.name={algorithm}"]
    path, moments = tmp_path / "r", random.Random(algorithm)
    command = [sys.executable, "-m", "grlo_lite.train", "--run-dir", str(path)]
    for step in (
        moments.randint(0, 2),
        moments.randint(3, 4),
    ):  # a fixed number of seconds would miss a fast machine's run
        more = ["--resume"] if path.exists() else words
        process = subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and written_steps(path) < step:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.3 if step else 8))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    if not RunDir(path).finished:
        assert in_process(*(["--run-dir", path, "--resume"] if path.exists() else ["--run-dir", path, *words])) == 0
    assert steps(path) == [1, 2, 3, 4, 5, 6]
    if algorithm == "rloo":
        whole = tmp_path / "whole"
        assert in_process("--run-dir", whole, *words) == 0
    assert summary(path)["adapter_sha256"] == summary(whole)["adapter_sha256"]


def test_a_run_that_was_not_asked_how_its_answers_end_has_the_same_adapter(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "_tell_how_answers_end", lambda *_: None)
    assert in_process("--run-dir", tmp_path / "r", *WORDS, "budget.steps=6") == 0
    assert "before the first step" not in capsys.readouterr().out
    assert summary(tmp_path / "r")["adapter_sha256"] == summary(whole)["adapter_sha256"]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "manifest.json"])
def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(unfinished, whole, capsys, name):
    newest = RunDir(unfinished).checkpoint_folders()[-1]
    data = (newest / name).read_bytes()
    (newest / name).write_bytes(data[: len(data) // 2])
    assert in_process("--run-dir", unfinished, "--resume") == 0
    assert f"step-6 is damaged ({name}" in capsys.readouterr().out
    assert steps(unfinished) == [1, 2, 3, 4, 5, 6]
    assert summary(unfinished)["adapter_sha256"] == summary(whole)["adapter_sha256"]


def test_a_run_whose_checkpoints_are_all_damaged_says_so_and_begins_nothing(unfinished, capsys):
    for folder in RunDir(unfinished).checkpoint_folders():
        (folder / "optimizer.pt").unlink()
    assert in_process("--run-dir", unfinished, "--resume") == 2
    error = capsys.readouterr().err
    assert "step-6: optimizer.pt is missing" in error
    assert error.count("\n") == 1
    assert steps(unfinished) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", ["recipe.yaml", "environment.json", "metrics.jsonl"])
def test_other_damaged_files_are_named_in_a_line(unfinished, capsys, name):
    content = (unfinished / name).read_text()
    (unfinished / name).write_text(content[: len(content) // 2].replace(":", ""))
    assert in_process("--run-dir", unfinished, "--resume") == 2
    error = capsys.readouterr().err
    assert name in error
    assert error.count("\n") == 1


def test_a_clock_that_jumps_changes_nothing(whole, tmp_path, monkeypatch):
    jumps = iter([0.0, 4e9, -4e9] * 100_000)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    path = tmp_path / "r"
    assert in_process("--run-dir", path, *WORDS, "budget.steps=6", "budget.hours=1") == 0
    assert summary(path)["adapter_sha256"] == summary(whole)["adapter_sha256"]
    assert 0 < summary(path)["wall_seconds"] < 600


def out_of_memory():
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def rollout_of_more_than_8(monkeypatch):
    step = Slots._fed

    def limited(self, tokens_S):
        if len(tokens_S) > 8:
            raise out_of_memory()
        return step(self, tokens_S)

    monkeypatch.setattr(Slots, "_fed", limited)


def reward_of_more_than_512_tokens(monkeypatch):
    scores = RewardModel._scores_of

    def limited(self, rows):
        if len(rows) * len(rows[-1]) > 512:
            raise out_of_memory()
        return scores(self, rows)

    monkeypatch.setattr(RewardModel, "_scores_of", limited)


def update_of_more_than_8(monkeypatch):
    loss = GRPOTrainer.compute_loss

    def limited(self, model, inputs, *args, **options):
        if len(inputs["completion_ids"]) > 8 and self.state.global_step >= 2:
            raise out_of_memory()
        return loss(self, model, inputs, *args, **options)

    monkeypatch.setattr(GRPOTrainer, "compute_loss", limited)


@pytest.mark.parametrize(
    ("phase", "inject", "smallest"),
    [
        ("rollout", rollout_of_more_than_8, 8),
        ("reward", reward_of_more_than_512_tokens, 512),
        ("update", update_of_more_than_8, 8),
    ],
)
def test_out_of_memory_halves_the_phase_and_nothing_else(whole, tmp_path, monkeypatch, phase, inject, smallest):
    path = tmp_path / "r"
    inject(monkeypatch)
    assert in_process("--run-dir", path, *WORDS, "budget.steps=6") == 0
    halved = summary(path)["out_of_memory"]
    assert {line["phase"] for line in halved} == ({phase, "dense copy"} if phase == "rollout" else {phase})
    assert halved[-1]["now"] == smallest
    lines, undisturbed = (files.read_lines(p / "metrics.jsonl") for p in (path, whole))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["rollouts"] for line in lines] == [32, 64, 96, 128, 160, 192]
    assert {line["effective_batch"] for line in lines} == {32}
    if phase == "update":  # the boundary's state was put back: the same rollouts, up to the order of sums
        assert [line["micro_batch"] for line in lines] == [32, 32, 8, 8, 8, 8]
    for line, other in zip(lines, undisturbed, strict=True):  # a row's random numbers are its own
        assert line["reward_mean"] == pytest.approx(other["reward_mean"], abs=1e-3)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)


def test_a_second_update_of_a_step_that_runs_out_of_memory_begins_the_step_again(tmp_path, monkeypatch):
    words = [*WORDS, "budget.steps=3", "algorithm.updates_per_rollout=2"]
    assert in_process("--run-dir", tmp_path / "whole", *words) == 0
    loss = GRPOTrainer.compute_loss

    def limited(self, model, inputs, *args, **options):
        if len(inputs["completion_ids"]) > 8 and self.state.global_step == 3:  # the second update of step 2
            raise out_of_memory()
        return loss(self, model, inputs, *args, **options)

    monkeypatch.setattr(GRPOTrainer, "compute_loss", limited)
    assert in_process("--run-dir", tmp_path / "r", *words) == 0
    assert steps(tmp_path / "r") == [1, 2, 3]
    lines = [files.read_lines(tmp_path / name / "metrics.jsonl")[-1] for name in ("r", "whole")]
    assert lines[0]["reward_mean"] == pytest.approx(lines[1]["reward_mean"], abs=1e-3)


def test_an_update_of_one_that_does_not_fit_ends_with_exit_code_3(tmp_path, monkeypatch, capsys):
    def limited(self, model, inputs, *args, **options):
        raise out_of_memory()

    monkeypatch.setattr(GRPOTrainer, "compute_loss", limited)
    assert in_process("--run-dir", tmp_path / "r", *WORDS, "budget.steps=2", "optimizer.micro_batch=2") == 3
    error = capsys.readouterr().err
    assert "the update of a single completion does not fit" in error
    assert "rollout.max_tokens=24" in error
    assert error.count("error: ") == 1
    assert "Traceback" not in error


@contextmanager
def mounted(folder: Path, size: str):
    """A small file system of its own; skips where none may be mounted."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_too_small_a_disk_is_refused_before_the_first_step(tmp_path, capsys):
    with mounted(tmp_path / "disk", "4m") as disk:
        assert in_process("--run-dir", disk / "r", *WORDS, "budget.steps=2") == 2
        error = capsys.readouterr().err
        assert "are free; make room" in error
        assert not (disk / "r").exists()


def test_a_disk_that_would_not_take_the_answers_is_refused_before_the_first_step(tmp_path, capsys, monkeypatch):
    with mounted(tmp_path / "disk", "40m") as disk:  # takes the checkpoints
        monkeypatch.setattr(end_of_run, "answer_bytes", lambda *_: 2**26)
        assert in_process("--run-dir", disk / "r", *WORDS, "budget.steps=2") == 2
        error = capsys.readouterr().err
        assert "are free; make room" in error
        assert not (disk / "r").exists()


def test_a_disk_that_fills_keeps_the_last_checkpoint_and_goes_on_when_there_is_room(whole, tmp_path, capsys):
    with mounted(tmp_path / "disk", "40m") as disk:
        path, ballast = disk / "r", disk / "ballast"
        check = layout.RunDir.adopt_checkpoint

        def then_fill(self, written, step, *rest):
            check(self, written, step, *rest)
            if step == 3:
                free = shutil.disk_usage(disk).free
                ballast.write_bytes(bytes(free - 2**20))

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(layout.RunDir, "adopt_checkpoint", then_fill)
            assert in_process("--run-dir", path, *WORDS, "budget.steps=6") == 1
        error = capsys.readouterr().err
        assert "the checkpoint of step 4 takes" in error
        assert "step-3 is kept" in error
        assert "Traceback" not in error
        assert checkpoints.damage(path / "checkpoints" / "step-3") is None
        ballast.unlink()
        assert in_process("--run-dir", path, "--resume") == 0
        assert steps(path) == [1, 2, 3, 4, 5, 6]
        assert summary(path)["adapter_sha256"] == summary(whole)["adapter_sha256"]


def test_a_disk_that_fills_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("grlo_lite.monitoring.recorder.require_space_for_checkpoint", lambda *_: None)
    with mounted(tmp_path / "disk", "40m") as disk:
        adopt = layout.RunDir.adopt_checkpoint

        def then_fill(self, written, step, *rest):
            adopt(self, written, step, *rest)
            if step == 2:
                free = shutil.disk_usage(disk).free
                (disk / "ballast").write_bytes(bytes(free - 2**20))

        monkeypatch.setattr(layout.RunDir, "adopt_checkpoint", then_fill)
        assert in_process("--run-dir", disk / "r", *WORDS, "budget.steps=4") == 1
        error = capsys.readouterr().err
        assert "is full" in error
        assert "step-2 is kept" in error
        assert "Traceback" not in error
        assert RunDir(disk / "r").checkpoint_to_resume() == disk / "r" / "checkpoints" / "step-2"


def test_a_read_only_disk_is_refused_in_a_line(unfinished, tmp_path, capsys):
    with mounted(tmp_path / "disk", "40m") as disk:
        shutil.copytree(unfinished, disk / "r")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for words in (["--run-dir", disk / "new", *WORDS], ["--run-dir", disk / "r", "--resume"]):
            assert in_process(*words) == 2
            error = capsys.readouterr().err
            assert "Read-only file system" in error or "cannot be written; copy it" in error
            assert error.count("\n") == 1


@pytest.mark.slow
def test_two_processes_share_a_run_and_resume_it(tmp_path):
    path = tmp_path / "r"
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]

    def launched(*words):
        command = [*launch, "grlo_lite.train", "--run-dir", str(path), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)

    done = launched(*WORDS, "budget.steps=4", "budget.hours=0.000001")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("run directory") == 1
    (path / "summary.json").unlink()
    done = launched("--resume", "budget.hours=1")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = files.read_lines(path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["rollouts"] for line in lines] == [32, 64, 96, 128]
    assert {(line["micro_batch"], line["effective_batch"]) for line in lines} == {(16, 32)}
    assert {p.name for p in (path / "checkpoints" / "step-4").glob("rng_state*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
