"""Tests of bloodjax/cli/compilation_cache.py."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from bloodjax.cli import compilation_cache


@pytest.fixture
def cache_dir():
    """The setting, put back after the test."""
    before = {
        name: getattr(jax.config, name)
        for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    }
    jax.config.update("jax_compilation_cache_dir", None)
    jax_cache.reset_cache()
    yield lambda: jax.config.jax_compilation_cache_dir
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


def test_what_is_compiled_lies_in_the_workdir(cache_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "_SECONDS", 0.0)
    compilation_cache.keep(tmp_path)
    jax.jit(lambda x: jnp.sin(x) * 3.25)(jnp.ones(17)).block_until_ready()
    assert pathlib.Path(cache_dir()).parent == tmp_path / "compiled"
    assert list((tmp_path / "compiled").glob("*/*"))


@pytest.mark.filterwarnings("ignore:Error reading persistent")
@pytest.mark.parametrize("left", [0, 100])
def test_what_a_kill_left_half_written_is_compiled_anew(cache_dir, tmp_path, monkeypatch, left):
    monkeypatch.setattr(compilation_cache, "_SECONDS", 0.0)
    compilation_cache.keep(tmp_path)

    def compute():
        return jax.jit(lambda x: jnp.cos(x) * 1.75)(jnp.ones(19))

    expected = compute()
    entries = [*(tmp_path / "compiled").glob("*/*-cache")]
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:left])
    jax_cache.reset_cache()
    assert entries
    np.testing.assert_array_equal(compute(), expected)


def test_processors_that_differ_share_nothing(monkeypatch):
    here = compilation_cache._processor()
    monkeypatch.setattr(compilation_cache.platform, "machine", lambda: "another")
    assert compilation_cache._processor() != here


def test_the_users_own_choice_goes_first(cache_dir, tmp_path):
    jax.config.update("jax_compilation_cache_dir", "chosen")
    compilation_cache.keep(tmp_path)
    assert cache_dir() == "chosen"


def test_a_workdir_in_folders_that_are_yet_to_be_made(cache_dir, tmp_path, monkeypatch):
    compilation_cache.keep(tmp_path / "runs/first")
    assert pathlib.Path(cache_dir()).parent == tmp_path / "runs/first/compiled"
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.chdir(tmp_path)
    compilation_cache.keep(pathlib.Path("runs/first"))
    assert pathlib.Path(cache_dir()).parent == pathlib.Path("runs/first/compiled")


def test_a_workdir_that_cannot_be_written_to_is_left_alone(cache_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache.os, "access", lambda *_: False)
    compilation_cache.keep(tmp_path)
    assert cache_dir() is None
