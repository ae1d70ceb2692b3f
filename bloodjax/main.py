"""Trains a classifier from a config, and goes on with a run that was stopped.

python -m bloodjax.main --config=configs/quickstart.py --workdir=DIR [--config.key=value ...]
"""

from __future__ import annotations

from bloodjax import cli

_CONFIG = cli.flags.DEFINE_string("config", None, "A Python file that defines get_config().")
cli.flags.DEFINE_string("workdir", None, "The folder that the run lives in.")


def main(overrides: list[str]) -> None:
    """Runs the command; `overrides` are the config's, as `"key=value"`."""
    # Imported only now, so that a wrong flag is answered at once.
    from bloodjax import compiled, folds, settings, train

    config, workdir = settings.load(_CONFIG.value, overrides), cli.local_path("workdir")
    compiled.keep(workdir)
    (folds.train if config.folds else train.train)(config, workdir)


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"), takes_config=True)
