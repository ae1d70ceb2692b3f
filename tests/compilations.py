"""Counts how often JAX compiles a function, by its name."""

import contextlib
import types

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def counted(name="train_steps"):
    """Yields an object whose `count` is how often functions of this name were compiled so far.

    A program that is read from the compilation cache counts too.
    """
    found = types.SimpleNamespace(count=0)

    def listen(event, _, fun_name="", **__):
        found.count += event == _COMPILED and name in fun_name

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
