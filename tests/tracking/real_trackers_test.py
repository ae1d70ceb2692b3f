"""Runs in the real libraries: MLflow's local store, and W&B's offline files."""

import json
import os
import sqlite3
import subprocess
import sys
import time

import pytest

import bloodjax

pytestmark = pytest.mark.full

# A run that is killed in its first start; the second one repeats both epochs, rolls back and ends.
RUN = """
import os, pathlib, signal, sys, time
from bloodjax import tracking
workdir, name, kills = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "kill"
options = dict(project="cells", run_name="", tags=("demo", "site=a"), finish_seconds=120.0)
parameters = {"seed": 0, "data.classes": (), "profile": not kills, "model.name": "simple_cnn"}
(workdir / "model").mkdir(exist_ok=True)
(workdir / "model" / "weights").write_bytes(b"1234")
(workdir / "page.html").write_text("<p>report</p>")
with tracking.open_trackers((name,), workdir, parameters=parameters, **options) as trackers:
    for step, loss in ((7, 0.75), (14, 0.5)):
        trackers.log_metrics({"train/loss": loss, "seconds": time.time()}, step)
    if kills:
        record = workdir / "tracking" / f"{name}.json"
        while not record.exists() or record.read_text().count('"') < 18:  # an id and two digests
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    trackers.log_metrics({"rollback/rate": 0.5}, 7)
    trackers.log_metrics({"train/loss": 0.25, "seconds": 1.0}, 14)
    trackers.log_results({"evaluate/test/accuracy": 0.875}, 14)
    trackers.log_report(workdir / "page.html")
    trackers.log_model(workdir / "model")
"""
TEXTS = {"seed": "0", "data.classes": "", "profile": "False", "model.name": "simple_cnn"}


def start(workdir, name, *, kills=False, environment=None):
    root = os.path.dirname(os.path.dirname(bloodjax.__file__))
    known = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MLFLOW_"))}
    return subprocess.run(
        [sys.executable, "-c", RUN, str(workdir), name, "kill" if kills else ""],
        env={**known, "PYTHONPATH": root, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_mlflow_has_one_record_of_a_killed_and_resumed_run(tmp_path):
    pytest.importorskip("mlflow", reason="needs bloodjax[mlflow]")
    pytest.importorskip("sqlalchemy", reason="needs bloodjax[mlflow]")
    assert start(tmp_path, "mlflow", kills=True).returncode == -9
    done = start(tmp_path, "mlflow")
    assert (done.returncode, done.stderr) == (0, "")
    store = sqlite3.connect(tmp_path / "tracking" / "mlflow.db")

    def rows(query):
        return store.execute(query).fetchall()

    ((run, name, status),) = rows("SELECT run_uuid, name, status FROM runs")
    assert (name, status) == (tmp_path.name, "FINISHED")
    assert json.loads((tmp_path / "tracking" / "mlflow.json").read_text())["id"] == run
    assert rows("SELECT name FROM experiments WHERE name != 'Default'") == [("cells",)]
    assert dict(rows("SELECT key, value FROM params")) == TEXTS
    tags = dict(rows("SELECT key, value FROM tags"))
    assert (tags["demo"], tags["site"], tags["resumed.profile"]) == ("true", "a", "True")
    points = rows("SELECT key, step, value FROM metrics WHERE key != 'seconds' ORDER BY timestamp")
    assert sorted(points) == [
        ("evaluate/test/accuracy", 14, 0.875),
        ("rollback/rate", 7, 0.5),
        *(("train/loss", 7, 0.75), ("train/loss", 14, 0.25), ("train/loss", 14, 0.5)),
    ]
    assert dict(rows("SELECT key, value FROM latest_metrics"))["train/loss"] == 0.25
    artifacts = tmp_path / "tracking" / "mlflow-artifacts" / run / "artifacts"
    assert (artifacts / "report" / "page.html").read_text() == "<p>report</p>"
    assert (artifacts / "model" / "weights").read_bytes() == b"1234"


def test_wandb_has_one_record_of_a_killed_and_resumed_run(tmp_path):
    pytest.importorskip("wandb", reason="needs bloodjax[wandb]")
    offline = {"WANDB_MODE": "offline"}
    assert start(tmp_path, "wandb", kills=True, environment=offline).returncode == -9
    time.sleep(1.1)  # W&B names the folder of a start by its second
    done = start(tmp_path, "wandb", environment=offline)
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads((tmp_path / "tracking" / "wandb.json").read_text())
    files = sorted((tmp_path / "tracking" / "wandb").glob("offline-run-*/*.wandb"))
    assert {path.name for path in files} == {f"run-{record['id']}.wandb"}
    found = [each for path in files for each in records(path)]
    runs = [each.run for each in found if each.WhichOneof("record_type") == "run"]
    assert {(run.run_id, run.project, run.display_name) for run in runs} == {
        (record["id"], "cells", tmp_path.name)
    }
    assert sorted(runs[0].tags) == ["demo", "site=a"]
    parameters = {}
    for each in found:
        updates = [*each.run.config.update, *each.config.update]
        parameters |= {
            ".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in updates
        }
    expected = {"seed": 0, "profile": True, "model.name": "simple_cnn"}
    assert {name: parameters.get(name) for name in expected} == expected
    points, pages = [], 0
    for each in found:
        if each.WhichOneof("record_type") == "history":
            row = {
                ".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in each.history.item
            }
            pages += "report" in row or any(name.startswith("report.") for name in row)
            points += [
                (row["step"], name, row[name]) for name in row if "/" in name and "step" in row
            ]
    assert sorted(points) == [
        *((7, "rollback/rate", 0.5), (7, "train/loss", 0.75)),
        *((14, "train/loss", 0.25), (14, "train/loss", 0.5)),
    ]
    assert pages == 1
    artifacts = [
        each.request.log_artifact.artifact
        for each in found
        if each.request.WhichOneof("request_type") == "log_artifact"
    ] + [each.artifact for each in found if each.WhichOneof("record_type") == "artifact"]
    (artifact,) = artifacts
    assert (artifact.name, artifact.type) == (f"{record['id']}-model", "model")
    assert [content.path for content in artifact.manifest.contents] == ["weights"]
    summaries = {}
    for each in found:
        for item in each.summary.update:
            summaries[".".join(item.nested_key) or item.key] = json.loads(item.value_json)
    assert summaries["evaluate/test/accuracy"] == 0.875


def records(path):
    """The records of a W&B file: protocol buffers in LevelDB's log format, after seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""
