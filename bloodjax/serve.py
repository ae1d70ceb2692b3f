"""Serves a page to try a trained classifier, and an HTTP endpoint; needs the extra [serve].

python -m bloodjax.serve --workdir=DIR [--workdir=DIR2 ...] [--port=8000] [--host=127.0.0.1]
"""

from __future__ import annotations

import importlib.util

from bloodjax.cli import command
from bloodjax.errors import UserError

command.flags.DEFINE_multi_string(
    "workdir",
    None,
    "DIR: Folder of the run. Repeated, or of a run with folds: their ensemble.",
)
_PORT = command.flags.DEFINE_integer("port", 8000, "N: Port; 0 takes a free one.", 0, 65535)
_HOST = command.flags.DEFINE_string(
    "host", "127.0.0.1", "ADDRESS: 0.0.0.0 lets other machines in, without a password."
)
_ALLOWED = command.flags.DEFINE_multi_string(
    "allowed_host", [], "NAME: Name under which a proxy offers the server. May be repeated."
)
_TTA = command.flags.DEFINE_string("tta", None, "VIEWS: Test-time views, as for predict.")
_FILE = command.flags.DEFINE_float("max_file_mb", 20.0, "MB: Most megabytes of a file.", 0.001)
_FILES = command.flags.DEFINE_integer("max_files", 64, "N: Most files in a request.", 1)
_PIXELS = command.flags.DEFINE_float(
    "max_megapixels", 40.0, "N: Most pixels of an image, in millions.", 0.001, 64.0
)
_SECONDS = command.flags.DEFINE_float("timeout", 60.0, "SECONDS: Most time for a request.", 0.1)
_NEIGHBOURS = command.flags.DEFINE_integer(
    "neighbours", 1600, "N: Training cells to find the nearest among; 0 finds none.", 0
)
# Modules of the extra -> the packages that have them.
_EXTRA = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}


def main(_: list[str]) -> None:
    """Runs the command."""
    missing = [name for module, name in _EXTRA.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"serve needs {', '.join(missing)}, expected the extra [serve]: "
            "pip install 'bloodjax[serve]'"
        )

    from bloodjax.augment import views
    from bloodjax.augment.tta import SELECTED
    from bloodjax.cli import compilation_cache, console
    from bloodjax.distributed import preemption
    from bloodjax.serving import app, server, service
    from bloodjax.serving.limits import MEGABYTE, Limits

    limits = Limits(
        file_bytes=int(_FILE.value * MEGABYTE),
        files=_FILES.value,
        pixels=int(_PIXELS.value * 1e6),
        seconds=_SECONDS.value,
    )
    if _TTA.value:
        views.check(_TTA.value, "--tta", (SELECTED,))
    workdirs = command.local_paths("workdir")
    with server.bind(_HOST.value, _PORT.value) as bound, preemption.graceful_shutdown() as request:
        answering = running = None

        def announce() -> None:
            answering.start()
            console.log_info(f"{server.url(bound)}  (Ctrl-C ends it)")
            if not server.is_loopback(bound):
                console.log_info(
                    "every machine that reaches this one can use it, without a password; put it "
                    "behind a proxy that asks for one"
                )

        try:
            with request.interruptible("stopped"):
                compilation_cache.keep(workdirs[0])
                answering = service.load(
                    workdirs, limits, tta=_TTA.value, neighbours_of=_NEIGHBOURS.value
                )
                names = (_HOST.value, *_ALLOWED.value)
                running = server.Server(app.create(answering, names), announce)
                running.start(bound)
                running.wait()
        finally:
            if running is not None:
                running.stop()
            if answering is not None:
                answering.close()


if __name__ == "__main__":
    command.run(
        main,
        name="serve",
        required=("workdir",),
        example="--workdir=runs/first --port=8000",
    )
