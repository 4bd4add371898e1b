"""A run with all four trackers is the run without them."""

import json

import pytest

from grlo_lite.rundir import files

SHORT = ("budget.steps=2", "evaluation.heldout_prompts=2", "evaluation.suite=none", "prompts.limit=40")


@pytest.mark.slow
def test_trackers_change_nothing_of_the_run_and_hold_its_steps(train, tmp_path, monkeypatch):
    for name in ("tensorboard", "wandb", "trackio", "mlflow"):
        pytest.importorskip(name, reason="needs grlo-lite[trackers]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # settled on import, which is in the child
    train("microcosm", *SHORT, "--run-dir", tmp_path / "plain")
    followed = "logging.report_to=[tensorboard,wandb,trackio,mlflow]"
    done = train("microcosm", *SHORT, followed, "--run-dir", tmp_path / "followed")
    assert "is left out" not in done.stdout + done.stderr
    assert list((tmp_path / "trackio").glob("grlo_lite*.db"))
    plain, tracked = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("plain", "followed"))
    assert plain["adapter_sha256"] == tracked["adapter_sha256"]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / "followed" / "tensorboard")).Reload()
    lines = files.read_lines(tmp_path / "followed" / "metrics.jsonl")
    for key in lines[0]:
        seen = [(e.step, e.tensor_proto.double_val[0]) for e in read.Tensors(key)]
        assert seen == [(line["step"], line[key]) for line in lines if key in line], key
