"""Searches for better values of a few config keys, by many runs compared on validation.

python -m bloodjax.sweep --config=NAME --space=FILE.py --trials=N [--storage=URL] [--workdir=DIR]
    [--pruner=median|hyperband|none] [--workers=K] [--keep=N] [--test] [--config.key=value ...]

The same command resumes a sweep, and works on it together with others that use the same storage
and workdir.
"""

from __future__ import annotations

import importlib.util
import pathlib
import sys

from bloodjax.cli import command
from bloodjax.errors import UserError

_CONFIG = command.flags.DEFINE_string(
    "config",
    None,
    "NAME: Recipe (bloodjax configs lists them), or a Python file with get_config().",
)
_SPACE = command.flags.DEFINE_string(
    "space",
    None,
    "FILE.py: File with get_space(): the keys to try, and their values. By default rates and "
    "regularisation.",
)
_TRIALS = command.flags.DEFINE_integer(
    "trials", None, "N: Trials of the whole sweep, by all workers.", 1
)
_STORAGE = command.flags.DEFINE_string(
    "storage",
    None,
    "URL: sqlite:///FILE, journal:///FILE (for network file systems) or a database. By default "
    "WORKDIR/sweep.db.",
)
_WORKDIR = command.flags.DEFINE_string(
    "workdir",
    None,
    "DIR: Folder of the runs, which all workers share. By default beside the file of --storage.",
)
_PRUNER = command.flags.DEFINE_enum(
    "pruner", "median", ["median", "hyperband", "none"], "How a bad trial is ended early."
)
_WORKERS = command.flags.DEFINE_integer(
    "workers", 1, "K: Processes that work on the sweep on this machine.", 1
)
_KEEP = command.flags.DEFINE_integer(
    "keep", 5, "N: The best trials that keep their checkpoints.", 1
)
_TEST = command.flags.DEFINE_boolean(
    "test", False, "Evaluate the best trial on test, once, when all trials have ended."
)


def main(overrides: list[str]) -> None:
    """Runs the command; `overrides` are the config's, as `"key=value"`."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            "sweep needs optuna, expected the extra [sweep]: pip install 'bloodjax[sweep]'"
        )
    from bloodjax import config as config_lib
    from bloodjax.tuning import space as space_lib

    config = config_lib.load(_CONFIG.value, overrides)
    space = space_lib.load(_SPACE.value or "default", config)
    storage, workdir = _places()

    from bloodjax import run
    from bloodjax.cli import compilation_cache
    from bloodjax.distributed import preemption
    from bloodjax.training.workdir import check_apart
    from bloodjax.tuning import final_test, local_workers
    from bloodjax.tuning.sweep import Options, Sweep

    check_apart(config, workdir)
    options = Options(storage, _TRIALS.value, _PRUNER.value, _KEEP.value)
    message = "stopped between the trials; the same command resumes"
    with (
        preemption.graceful_shutdown(config.grace_seconds) as stop,
        stop.interruptible(message),
    ):
        with local_workers.started(_WORKERS.value, workdir, sys.argv[1:]):
            compilation_cache.keep(workdir)
            sweep = Sweep(config, space, workdir, options)
            sweep.work(run.fit)
        sweep.finish()
        if _TEST.value:
            final_test.evaluate(sweep)


def _places() -> tuple[str, pathlib.Path]:
    """URL of the storage and folder of the sweep, of which one follows from the other."""
    from bloodjax.io import bucket_urls
    from bloodjax.tuning import study

    storage = _STORAGE.value
    if not storage and not _WORKDIR.value:
        raise UserError("--storage or --workdir is missing; --help says what they are")
    if bucket_urls.is_remote(_WORKDIR.value or ""):
        raise UserError(
            f"--workdir={_WORKDIR.value}: the workers of a sweep lock files in its folder, which a "
            "bucket cannot; expected a folder on a disk"
        )
    workdir = command.local_path("workdir") if _WORKDIR.value else study.default_folder(storage)
    if workdir is None:
        raise UserError(
            f"--workdir is missing: --storage={study.without_password(storage)} has no folder of "
            "its own, expected one that all workers share"
        )
    return storage or study.sqlite_url(workdir / "sweep.db"), workdir


if __name__ == "__main__":
    command.run(
        main,
        name="sweep",
        required=("config", "trials"),
        takes_config=True,
        example="--config=quickstart --space=space.py --trials=20 --storage=sqlite:///sweep.db",
    )
