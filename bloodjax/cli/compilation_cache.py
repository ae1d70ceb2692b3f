"""Stores what JAX compiles for a run in its workdir, so that the next start does not compile."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform

import jax

FOLDER = "compiled"
# Programs that compile faster than this are not stored; reading them takes as long.
_SECONDS = 0.5


def keep(workdir: pathlib.Path) -> None:
    """Sets JAX's compilation cache of this process to a folder in `workdir`.

    Does nothing if the workdir is not writable, or if the user set a cache directory
    (`JAX_COMPILATION_CACHE_DIR`).
    """
    # The workdir and folders above it may be yet to be made.
    parent = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.exists())
    if jax.config.jax_compilation_cache_dir or not os.access(parent, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(workdir / FOLDER / _processor()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)


def _processor() -> str:
    """A name for the processor's instruction set; code for another one may not run here."""
    abilities = {platform.machine(), platform.processor()}
    if os.path.exists("/proc/cpuinfo"):
        text = pathlib.Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
        abilities |= {line for line in text.splitlines() if line.startswith(("flags", "Features"))}
    return hashlib.sha256("\n".join(sorted(abilities)).encode()).hexdigest()[:12]
