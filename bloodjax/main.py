"""Trains a classifier from a config, and goes on with a run that was stopped.

python -m bloodjax.main --config=configs/quickstart.py --workdir=DIR [--config.key=value ...]
    [--coordinator=HOST:PORT --num_processes=N --process_id=I]

The last three make it one of several processes of one run, each with devices of its own, which
share the workdir. A TPU pod, SLURM and Open MPI say the same without flags.
"""

from __future__ import annotations

from bloodjax.cli import command

_CONFIG = command.flags.DEFINE_string("config", None, "A Python file that defines get_config().")
command.flags.DEFINE_string("workdir", None, "The folder that the run lives in.")
_COORDINATOR = command.flags.DEFINE_string(
    "coordinator", None, "Of several processes: HOST:PORT at which number 0 can be reached."
)
_PROCESSES = command.flags.DEFINE_integer("num_processes", None, "How many processes the run has.")
_PROCESS = command.flags.DEFINE_integer(
    "process_id", None, "Which of them this is, counted from 0."
)


def main(overrides: list[str]) -> None:
    """Runs the command; `overrides` are the config's, as `"key=value"`."""
    # Imported only now, so that a wrong flag is answered at once.
    from bloodjax import config as config_lib
    from bloodjax import cross_validation, distributed, run
    from bloodjax.cli import compilation_cache

    config, workdir = config_lib.load(_CONFIG.value, overrides), command.local_path("workdir")
    place = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    with distributed.session(*place, config.peer_timeout):
        compilation_cache.keep(workdir)
        (cross_validation.train if config.folds else run.train)(config, workdir)


if __name__ == "__main__":
    command.run(main, required=("config", "workdir"), takes_config=True)
