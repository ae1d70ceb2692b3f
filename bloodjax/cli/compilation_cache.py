"""What JAX compiles for a run, kept in its workdir, so that the next start need not wait for it."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform

import jax

FOLDER = "compiled"
# What compiles faster than it is read is not kept.
_SECONDS = 0.5


def keep(workdir: pathlib.Path) -> None:
    """Has this process read what was compiled for `workdir` before, and keep what it compiles.

    A workdir that cannot be written to is left as it is, and a cache directory that the user set
    (`JAX_COMPILATION_CACHE_DIR`) goes first.
    """
    parent = workdir if workdir.exists() else workdir.parent
    if jax.config.jax_compilation_cache_dir or not os.access(parent, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(workdir / FOLDER / _processor()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)


def _processor() -> str:
    """A name for what this machine's processor can do: code for another one may be illegal here."""
    abilities = {platform.machine(), platform.processor()}
    if os.path.exists("/proc/cpuinfo"):
        text = pathlib.Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
        abilities |= {line for line in text.splitlines() if line.startswith(("flags", "Features"))}
    return hashlib.sha256("\n".join(sorted(abilities)).encode()).hexdigest()[:12]
