"""A run's record in Weights & Biases. The only module with wandb.

Server, key, entity and mode are those of W&B's own environment variables: WANDB_BASE_URL,
WANDB_API_KEY (or `wandb login`), WANDB_ENTITY, WANDB_MODE=offline and so on.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping

from bloodjax.tracking.options import PROJECT, TrackingOptions
from bloodjax.tracking.record import Record

# Seconds for W&B to answer at the start; the run's own retries are a minute apart.
_INIT_SECONDS = 20.0
_EXIT_CODES = {"finished": 0, "stopped": 130, "failed": 1}


class WandbTracker:
    """Writes to one run of W&B, in this process."""

    def __init__(self, options: TrackingOptions, path: pathlib.Path):
        """Does not yet contact W&B.

        Args:
          options: What the run tells about itself.
          path: File of the run's record.
        """
        folder = pathlib.Path(options.folder)
        # Where W&B puts files of its own; nothing is written outside of the workdir.
        os.environ.setdefault("WANDB_DIR", str(folder))
        for name in ("DATA", "CACHE", "CONFIG"):
            default = folder / "wandb" / name.lower()
            os.environ.setdefault(f"WANDB_{name}_DIR", str(default))
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # sends nothing that is not asked
        os.environ.setdefault("WANDB_SILENT", "true")
        self.record = Record(path, os.environ.get("WANDB_BASE_URL", ""))
        self._options, self._run = options, None

    def open(self) -> None:
        """Starts the run, or resumes it."""
        import wandb

        self.record.set_id(self.record.id or self.record.key)
        self._run = wandb.init(
            id=self.record.id,
            resume="allow",
            project=self._options.project or os.environ.get("WANDB_PROJECT") or PROJECT,
            name=self._options.run_name,
            tags=list(self._options.tags),
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                init_timeout=_INIT_SECONDS,
            ),
        )
        self._run.config.update(dict(self._options.parameters), allow_val_change=True)
        # W&B's own step may only grow, and a run that was rolled back repeats steps.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each of several curves."""
        self._run.log({**values, "step": step}, step=len(self.record) + 1, commit=True)

    def log_results(self, values: Mapping[str, float], step: int) -> None:
        """Sets final results of the run."""
        del step
        self._run.summary.update(dict(values))

    def log_report(self, path: pathlib.Path) -> None:
        """Adds a page of HTML."""
        import wandb

        page = wandb.Html(path.read_text("utf-8"), inject=False)
        self._run.log({"report": page}, step=len(self.record) + 1, commit=True)

    def log_model(self, folder: pathlib.Path) -> None:
        """Adds a folder as an artifact; the files must stay until they are uploaded."""
        import wandb

        artifact = wandb.Artifact(f"{self.record.id}-model", type="model")
        artifact.add_dir(str(folder), policy="immutable", skip_cache=True)
        self._run.log_artifact(artifact)

    def close(self, status: str) -> None:
        """Ends the record, or this part of it; waits until W&B has everything.

        Args:
          status: "finished", "stopped" or "failed".
        """
        self._run.finish(exit_code=_EXIT_CODES[status])
