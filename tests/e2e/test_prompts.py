"""Prompts through the command: cleaned, decontaminated, saved, and what of it the run directory holds."""

import json
import socket
import subprocess
import sys
import time

from grlo_lite import prompts
from grlo_lite.recipe.schema import Part

QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many?"


def test_the_run_directory_holds_what_was_checked_and_the_hash_of_the_prompts(trained):
    run, printed = trained.path, trained.printed
    report = json.loads((run / "contamination.json").read_text())
    assert [(one["set"], one["questions"], one["hits"]) for one in report["checked"]] == [
        (f"microcosm-{domain}", 300, 0) for domain in ("arithmetic", "ordering", "spelling", "code")
    ]
    assert report["hits"] == report["unchecked"] == []
    assert "exact duplicates" in printed
    assert len(json.loads((run / "environment.json").read_text())["prompts_sha256"]) == 64


def test_planted_questions_and_bad_prompts_are_dropped_and_what_is_left_is_saved(train, tmp_path):
    texts = ["Tell me about the river.", "  ", "Tell me about the river.", f"Please solve: {QUESTION}", "x" * 3_000_000]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    (tmp_path / "gsm8k.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n")
    done = train(
        "--dry-run", "--write-prompts", "left.jsonl", "prompts.source=mine.jsonl", "prompts.overlong=drop",
        "prompts.decontaminate.against=[gsm8k.jsonl]", cwd=tmp_path,
    )  # fmt: skip
    left, _ = prompts.load((Part(source=str(tmp_path / "left.jsonl")),), None, 0)
    assert left == [[{"role": "user", "content": "Tell me about the river."}]]
    rows = [line.split() for line in done.stdout.splitlines()]
    for name, dropped, after in (
        ("empty", "1", "4"),
        ("exact", "1", "3"),
        ("over", "1", "2"),
        ("contaminated", "1", "1"),
    ):
        row = next(row for row in rows if row[:1] == [name])
        assert dropped in row
        assert after in row
    assert "natalia sold clips to 48 of her friends" in done.stdout


def test_with_decontamination_off_all_is_unchecked(train):
    done = train("--dry-run", "prompts.decontaminate=false")
    assert "not checked against microcosm-arithmetic, microcosm-ordering, microcosm-spelling" in done.stdout


def test_a_hub_that_never_answers_ends_the_command_within_10_seconds(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "HF_HOME": str(tmp_path),
            "HOME": str(tmp_path),
            "OMP_NUM_THREADS": "1",
        }
        began = time.monotonic()
        command = [sys.executable, "-m", "grlo_lite.train", "prompts.source=nobody/nothing"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert "prompts.source='nobody/nothing' needs the network" in done.stderr
        assert time.monotonic() - began < 10
