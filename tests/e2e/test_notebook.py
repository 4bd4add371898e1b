"""recipes/colab.ipynb: its commands are the README's, and they work."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / "recipes" / "colab.ipynb").read_text(encoding="utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
INSTALL, TRAIN, EVALUATE, APP, SHOW = CELLS


def run(cell, folder, *more):
    words = [sys.executable if word == "python" else word for word in shlex.split(cell.removeprefix("!"))]
    done = subprocess.run([*words, *more], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_cells_are_the_readmes_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert INSTALL.removeprefix("!").replace(" -q", "") in readme
    for cell in (TRAIN, EVALUATE):
        assert " ".join(shlex.split(cell.removeprefix("!"))[:3]) in readme
    assert all(
        not cell["outputs"] and cell["execution_count"] is None for cell in NOTEBOOK["cells"] if "outputs" in cell
    )
    assert NOTEBOOK["nbformat"] == 4


@pytest.mark.slow
def test_training_and_evaluation_run_in_turn(tmp_path):
    short = ("budget.steps=2", "evaluation.limit=10", "evaluation.heldout_prompts=4")
    run(TRAIN, tmp_path, *short)
    assert (tmp_path / "runs" / "colab" / "summary.json").exists()
    printed = run(EVALUATE, tmp_path, "--limit", "4")
    assert "average" in printed
    assert json.loads((tmp_path / "runs" / "colab" / "evaluation.json").read_text())["tasks"]


@pytest.mark.skipif(not (ROOT / "app.py").exists(), reason="the app is not here")
def test_the_app_answers_at_the_port_that_the_notebook_shows(tmp_path):
    port = int(re.findall(r"serve_kernel_port_as_iframe\((\d+)", SHOW)[0])
    assert shlex.split(APP.removeprefix("!"))[:3] == ["nohup", "python", "app.py"]
    log = tmp_path / "app.log"
    with log.open("w") as output:
        app = subprocess.Popen(
            [sys.executable, "-u", str(ROOT / "app.py"), "--demo"], stdout=output, stderr=output, env=os.environ
        )
    try:
        deadline = time.monotonic() + 120
        while not (shown := re.findall(r"http://127\.0\.0\.1:(\d+)", log.read_text())):
            assert app.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        with urllib.request.urlopen(f"http://127.0.0.1:{shown[0]}/", timeout=30) as page:
            assert page.status == 200
    finally:
        app.kill()
        app.wait()
    assert int(shown[0]) >= port  # Gradio takes the next one where that is taken
