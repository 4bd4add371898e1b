"""Each tracker holds the very lines of metrics.jsonl, read back by its own library; none of them ends a run."""

import json
import os
import time
from types import SimpleNamespace
from uuid import uuid4

import pytest

from grlo_lite.monitoring import trackers
from grlo_lite.recipe import loading as recipes
from grlo_lite.rundir import files, layout

STEPS = (1, 2, 3)
LINES = [{"step": n, "reward_mean": 0.1 + n / 3, "loss": -1.25 * n, "rollouts": 8 * n} for n in STEPS]
SAMPLE = {"prompt": "Say | a", "completion": "b\n<b>", "reward": 0.5, "score": 0.25, "length": 3, "truncated": False}
SAMPLE["step"] = 2
GUARD = {"step": 3, "guard": "entropy", "message": "too low", "action": "warn", "samples": []}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_PROJECT", f"grlo_lite-{uuid4().hex}")  # its folder is settled once, on import
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return layout.create(tmp_path / "runs" / "one", "microcosm", recipes.dumped(recipes.load("microcosm", [])))


def followed(run, *names):
    """What a run of three steps with these trackers leaves, the guard at the last."""
    callback = trackers.Followed(run, recipes.load("microcosm", [f"logging.report_to=[{','.join(names)}]"]))
    state = SimpleNamespace(global_step=0)
    callback.on_train_begin(None, state, None)
    alive = set(callback.trackers)
    for line in LINES:
        files.append_lines(run.metrics, [line])
        files.append_lines(run.samples, [SAMPLE] if line["step"] == 2 else [])
        files.append_lines(run.guards, [GUARD] if line["step"] == 3 else [])
        callback.on_log(None, state, None)
    alive &= set(callback.trackers)
    callback.close()
    return alive


def expected(key):
    return [(line["step"], pytest.approx(line[key])) for line in LINES]


def test_tensorboard(run):
    pytest.importorskip("tensorboard", reason="needs grlo-lite[trackers]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert followed(run, "tensorboard") == {"tensorboard"}
    read = EventAccumulator(str(run.path / "tensorboard")).Reload()
    found = {tag: read.Tensors(tag) for tag in read.Tags()["tensors"]}
    for key in ("reward_mean", "loss", "rollouts"):
        assert [(e.step, e.tensor_proto.double_val[0]) for e in found[key]] == expected(key)
    assert [e.step for e in found["samples/text_summary"]] == [2]
    assert [e.step for e in found["guard/entropy/text_summary"]] == [3]


@pytest.mark.slow
def test_trackio(run):
    pytest.importorskip("trackio", reason="needs grlo-lite[trackers]")
    from trackio.sqlite_storage import SQLiteStorage

    assert followed(run, "trackio") == {"trackio"}
    rows = SQLiteStorage.get_logs(os.environ["TRACKIO_PROJECT"], "one")
    assert [(row["step"], row["reward_mean"]) for row in rows if "reward_mean" in row] == expected("reward_mean")
    assert [row["step"] for row in rows if "samples" in row] == [2]
    assert [(alert["title"], alert["text"]) for alert in SQLiteStorage.get_alerts(os.environ["TRACKIO_PROJECT"])] == [
        ("entropy", "step 3: too low")
    ]


def wandb_records(data):
    """The records of W&B's offline file, LevelDB's log: 7 bytes of header, then blocks of 32 KiB of pieces."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if (left := 32_768 - at % 32_768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield record
            record = b""


@pytest.mark.slow
def test_wandb(run):
    pytest.importorskip("wandb", reason="needs grlo-lite[trackers]")
    from wandb.proto import wandb_internal_pb2

    assert followed(run, "wandb") == {"wandb"}
    (file,) = run.path.glob("wandb/offline-run-*/run-*.wandb")
    deadline, size = time.monotonic() + 30, -1
    while size != file.stat().st_size and time.monotonic() < deadline:  # its own process writes late
        size = file.stat().st_size
        time.sleep(2)
    rows, alerts = [], []
    for data in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = record.history.item
            rows.append({(item.key or item.nested_key[0]): json.loads(item.value_json) for item in items})
        if record.HasField("alert"):
            alerts.append(record.alert.title)
    assert [(row["step"], row["reward_mean"]) for row in rows if "reward_mean" in row] == expected("reward_mean")
    assert [row["step"] for row in rows if "samples" in row] == [2]
    assert alerts == ["entropy"]


@pytest.mark.slow
def test_mlflow_goes_on_with_the_same_run(run):
    pytest.importorskip("mlflow", reason="needs grlo-lite[trackers]")
    from mlflow import MlflowClient

    assert followed(run, "mlflow") == {"mlflow"}
    assert followed(run, "mlflow") == {"mlflow"}  # as a resumed run does
    client = MlflowClient((run.path.parent / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("grlo_lite")
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "reward_mean")
    assert sorted({(m.step, m.value) for m in history}) == expected("reward_mean")
    assert found.data.tags["guard.entropy"] == "step 3: too low"
    assert "samples.json" in {artifact.path for artifact in client.list_artifacts(found.info.run_id)}


def test_one_that_fails_or_is_absent_is_told_once_and_the_others_go_on(run, monkeypatch, capsys):
    kept = []
    good = SimpleNamespace(
        metrics=lambda step, line: kept.append(step), samples=lambda *_: None, alert=lambda *_: None, close=lambda: None
    )

    def fails(step, line):
        raise ConnectionError("the server is gone")

    bad = SimpleNamespace(metrics=fails, samples=None, alert=None, close=None)
    table = {"wandb": ("json", lambda *_: bad), "mlflow": ("json", lambda *_: good), "trackio": ("not_here", None)}
    monkeypatch.setattr(trackers, "TRACKERS", table)
    assert followed(run, "wandb", "mlflow", "trackio") == {"mlflow"}
    assert kept == [1, 2, 3]
    said = capsys.readouterr()
    assert (said.out + said.err).count("wandb failed and is left out") == 1
    assert "trackio is not installed" in said.out + said.err
