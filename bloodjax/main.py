"""Trains a classifier from a config, or resumes a run that was stopped.

python -m bloodjax.main --config=quickstart --workdir=DIR [--config.key=value ...]
    [--coordinator=HOST:PORT --num_processes=N --process_id=I]

DIR may be gs://BUCKET/NAME or s3://BUCKET/NAME. The last three flags make it one of several
processes of one run, each with its own devices; they share the workdir, or it is in a bucket. On a
TPU pod, under SLURM and under Open MPI they are detected.
"""

from __future__ import annotations

from bloodjax.cli import command

_CONFIG = command.flags.DEFINE_string(
    "config",
    None,
    "NAME: Recipe (bloodjax configs lists them), or a Python file with get_config().",
)
_WORKDIR = command.flags.DEFINE_string(
    "workdir", None, "DIR: Folder of the run; one that was stopped is resumed."
)
_COORDINATOR = command.flags.DEFINE_string(
    "coordinator", None, "HOST:PORT: Where process 0 of several can be reached."
)
_PROCESSES = command.flags.DEFINE_integer("num_processes", None, "N: Number of processes.")
_PROCESS = command.flags.DEFINE_integer(
    "process_id", None, "I: Number of this process, counted from 0."
)


def main(overrides: list[str]) -> None:
    """Runs the command; `overrides` are the config's, as `"key=value"`."""
    # Imported only now, so that a wrong flag or config is reported at once.
    from bloodjax import config as config_lib

    config = config_lib.load(_CONFIG.value, overrides)

    from bloodjax import cross_validation, distributed, run
    from bloodjax.cli import compilation_cache
    from bloodjax.training.remote_workdir import local_workdir

    place = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    with (
        distributed.session(*place, config.peer_timeout),
        local_workdir(_WORKDIR.value) as workdir,
    ):
        compilation_cache.keep(workdir)
        (cross_validation.train if config.folds else run.train)(config, workdir)


if __name__ == "__main__":
    command.run(
        main,
        name="train",
        required=("config", "workdir"),
        takes_config=True,
        example="--config=quickstart --workdir=runs/first --config.data.train=cells.zip",
    )
