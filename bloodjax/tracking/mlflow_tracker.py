"""A run's record in MLflow. The only module with mlflow.

Server and credentials are those of MLflow's own environment variables: MLFLOW_TRACKING_URI,
MLFLOW_TRACKING_TOKEN and so on. Without MLFLOW_TRACKING_URI the record is a local store in the
workdir.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bloodjax.io.files import atomic_write
from bloodjax.tracking.options import PROJECT, TrackingOptions
from bloodjax.tracking.record import Record

_STATUSES = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
# MLflow's limits: parameters or tags of one request, and characters of a value.
_AT_ONCE = 100
_MOST_CHARACTERS = 6000
# Names the record, so that a start that lost the answer to its creation finds it again.
_KEY_TAG = "bloodjax.record"
# For a request that fails: the run's own retries are a minute apart.
_RETRIES, _SECONDS = "1", "20"


class MlflowTracker:
    """Writes to one run of MLflow."""

    def __init__(self, options: TrackingOptions, path: pathlib.Path):
        """Does not yet contact MLflow.

        Args:
          options: What the run tells about itself.
          path: File of the run's record.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", _RETRIES)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", _SECONDS)
        self._options, self._folder = options, pathlib.Path(options.folder)
        self._uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        self.record = Record(path, self._uri)  # "" for the local store, wherever the workdir is
        self._client: Any = None

    def open(self) -> None:
        """Creates the run, or continues it; writes its parameters and tags."""
        import mlflow

        store = self._folder / "mlflow.db"
        if not self._uri and store.exists() and store.stat().st_nlink > 1:
            # Of a workdir in a bucket it is a link to the cache, and SQLite changes it in place.
            atomic_write(store, store.read_bytes())
        self._client = mlflow.MlflowClient(self._uri or f"sqlite:///{store}")
        if not self.record.id:
            self.record.set_id(self._find_or_create())
        found = self._client.get_run(self.record.id)
        if found.info.status != "RUNNING":
            self._client.update_run(self.record.id, status="RUNNING")
        self._write_parameters(found.data.params)

    def _find_or_create(self) -> str:
        name = self._options.project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            number = experiment.experiment_id
        elif self._uri:
            number = self._client.create_experiment(name)
        else:
            artifacts = (self._folder / "mlflow-artifacts").as_uri()
            number = self._client.create_experiment(name, artifact_location=artifacts)
        if not self.record.is_new:
            filtered = f"tags.`{_KEY_TAG}` = '{self.record.key}'"
            for run in self._client.search_runs([number], filtered, max_results=1):
                return run.info.run_id
        tags = {_KEY_TAG: self.record.key}
        run = self._client.create_run(number, tags=tags, run_name=self._options.run_name)
        return run.info.run_id

    def _write_parameters(self, known: Mapping[str, str]) -> None:
        """Writes parameters, and as tags those that changed: MLflow's parameters cannot change."""
        from mlflow.entities import Param, RunTag

        texts = {k: str(v)[:_MOST_CHARACTERS] for k, v in self._options.parameters.items()}
        new = [Param(key, text) for key, text in texts.items() if key not in known]
        tags = [RunTag(*_key_and_value(tag)) for tag in self._options.tags]
        tags += [
            RunTag(f"resumed.{key}", text)
            for key, text in texts.items()
            if known.get(key, text) != text
        ]
        for some in _batches(new):
            self._client.log_batch(self.record.id, params=some)
        for some in _batches(tags):
            self._client.log_batch(self.record.id, tags=some)

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each of several curves."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(name, float(value), now, step) for name, value in values.items()]
        for some in _batches(points):
            self._client.log_batch(self.record.id, metrics=some)

    def log_results(self, values: Mapping[str, float], step: int) -> None:
        """Sets final results of the run: curves of one point."""
        self.log_metrics(values, step)

    def log_report(self, path: pathlib.Path) -> None:
        """Adds a page of HTML."""
        self._client.log_artifact(self.record.id, str(path), "report")

    def log_model(self, folder: pathlib.Path) -> None:
        """Adds a folder as an artifact."""
        self._client.log_artifacts(self.record.id, str(folder), "model")

    def close(self, status: str) -> None:
        """Ends the record, or this part of it.

        Args:
          status: "finished", "stopped" or "failed".
        """
        self._client.set_terminated(self.record.id, _STATUSES[status])


def _key_and_value(tag: str) -> tuple[str, str]:
    key, equals, value = tag.partition("=")
    return key, value if equals else "true"


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    remaining = iter(items)
    while some := list(itertools.islice(remaining, _AT_ONCE)):
        yield some
