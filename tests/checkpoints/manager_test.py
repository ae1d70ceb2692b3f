import contextlib
import dataclasses
import errno
import json
import os
import resource
import shutil
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from bloodjax.checkpoints import integrity
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.checkpoints.state import Average, RunProgress, TrainState
from bloodjax.cli import console
from bloodjax.distributed import sharding
from bloodjax.errors import UserError

from ..trees import assert_trees_equal

TX = optax.adamw(1e-3)


def state_at(step, tx=TX):
    rng = np.random.default_rng(step)
    variables = {
        "params": {"dense": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}},
        "batch_stats": {"norm": {"mean": jnp.asarray(rng.normal(size=4), jnp.float32)}},
    }
    state = TrainState.create(variables, tx).replace(step=jnp.int32(step))
    return state.replace(
        opt_state=jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), state.opt_state)
    )


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_gives_back_the_same_bits(tmp_path):
    top_k = ((7, 0.3),)
    state, progress = state_at(7), RunProgress(("a", "b"), 1, 2, 1, 0.1, 0.3, 7, top_k=top_k)
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.latest_step is None
        checkpoints.save(state, progress)
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.latest_step == 7
        assert checkpoints.progress() == progress
        assert_trees_equal(checkpoints.restore(7, jax.eval_shape(lambda: state_at(0))), state)


@pytest.mark.parametrize("name", ["run[1]", "x\\y", "**", "[!a] 嗜?", "x\\", "\udcff"])
def test_a_folder_may_have_any_name(tmp_path, name):
    """A file system allows each of these names; some are patterns or separators for orbax."""
    folder = tmp_path / name / "checkpoints"
    state = state_at(7)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, RunProgress(("a",)))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert_trees_equal(checkpoints.restore(7, jax.eval_shape(lambda: state_at(0))), state)
        variables = checkpoints.restore_variables(7, jax.eval_shape(lambda: state_at(0).variables))
        assert_trees_equal(variables, state.variables)


def test_a_checkpoint_that_cannot_be_read_is_known_when_it_is_written(tmp_path, monkeypatch):
    def incomplete(manager):
        waits(manager)
        for index in (tmp_path / "9/state").glob("manifest.*"):
            index.unlink()

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(7), RunProgress(("a",)))
        checkpoints.wait()
        waits = ocp.CheckpointManager.wait_until_finished
        monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", incomplete)
        checkpoints.save(state_at(9), RunProgress(("a",)))
        with pytest.raises(
            UserError, match=r"step 9 was written but cannot be read .* is of step 7; expected"
        ):
            checkpoints.wait()
        monkeypatch.undo()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 7


def test_a_bfloat16_moment_stays_one(tmp_path):
    tx = optax.adamw(1e-3, mu_dtype="bfloat16")
    state = state_at(7, tx)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, RunProgress(("a",)))
        found = checkpoints.restore(7, jax.eval_shape(lambda: state_at(0, tx)))
    assert_trees_equal(found, state)
    kinds = [[leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (found, state)]
    assert kinds[0] == kinds[1]
    assert jnp.bfloat16 in kinds[0]


@flax.struct.dataclass
class Earlier:
    """A state as it was before it could hold an average."""

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    metrics: Any


def test_a_run_from_before_there_were_averages_goes_on(tmp_path):
    state = state_at(7)
    earlier = Earlier(**{f.name: getattr(state, f.name) for f in dataclasses.fields(Earlier)})
    with ocp.CheckpointManager(tmp_path, item_names=("state", "progress")) as manager:
        manager.save(
            7,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(earlier),
                progress=ocp.args.JsonSave(dataclasses.asdict(RunProgress(("a",)))),
            ),
        )
    with Checkpoints(tmp_path) as checkpoints:
        assert_trees_equal(checkpoints.restore(7, jax.eval_shape(lambda: state_at(0))), state)


def test_an_average_is_kept_and_read_alone(tmp_path):
    state = state_at(7)
    state = state.replace(ema=Average.of(state_at(8).variables))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, RunProgress(("a",)))
        assert_trees_equal(checkpoints.restore(7, jax.eval_shape(lambda: state)), state)
        shapes = jax.eval_shape(lambda: state_at(0).variables)
        found = checkpoints.restore_variables(7, shapes, ema=True)
        assert_trees_equal(checkpoints.restore_variables(7, shapes), state.variables)
    assert_trees_equal(found, state_at(8).variables)


def test_reads_the_variables_alone(tmp_path):
    state = state_at(7)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, RunProgress(("a",)))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        shapes = jax.eval_shape(lambda: state_at(0).variables)
        assert_trees_equal(checkpoints.restore_variables(7, shapes), state.variables)


def test_keeps_the_latest_two_and_what_they_need(tmp_path):
    progress = RunProgress(("a",))
    with Checkpoints(tmp_path) as checkpoints:
        for step, value in [(1, 0.5), (2, 0.9), (3, 0.7), (4, 0.8), (5, 0.1)]:
            progress = progress.after_epoch(value, True, step)
            checkpoints.save(state_at(step), progress)
    assert steps_in(tmp_path) == [2, 4, 5]
    with Checkpoints(tmp_path) as checkpoints:
        progress = checkpoints.progress().after_epoch(0.95, True, 6)
        checkpoints.save(state_at(6), progress)
    assert steps_in(tmp_path) == [2, 5, 6], "of step 5, the best is that of step 2"
    with Checkpoints(tmp_path) as checkpoints:
        progress = checkpoints.progress().after_epoch(0.1, True, 7)
        checkpoints.save(state_at(7), progress)
    assert steps_in(tmp_path) == [6, 7]


def test_keeps_as_many_of_the_best_as_lead(tmp_path):
    progress = RunProgress(("a",))
    with Checkpoints(tmp_path) as checkpoints:
        for step, value in [(1, 0.5), (2, 0.9), (3, 0.7), (4, 0.8), (5, 0.1), (6, 0.2)]:
            progress = progress.after_epoch(value, True, step, keep=2)
            checkpoints.save(state_at(step), progress)
    assert steps_in(tmp_path) == [2, 4, 5, 6]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.progress() == progress


def test_while_steps_are_skipped_the_last_good_one_stays(tmp_path):
    bad = [state_at(step) for step in (3, 4)]
    bad = [state.replace(metrics=state.metrics.replace(bad_step=jnp.int32(2))) for state in bad]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_before(9) is None
        for state in (state_at(1), *bad):
            checkpoints.save(state, RunProgress(("a",)))
        assert checkpoints.latest_before(2) == 1
        assert checkpoints.latest_before(9) == 4
    assert steps_in(tmp_path) == [1, 3, 4]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.drop_after(1)
        assert checkpoints.latest_step == 1
        checkpoints.save(state_at(3), RunProgress(("a",)))  # of another course of the run
    assert steps_in(tmp_path) == [1, 3]
    with Checkpoints(tmp_path) as checkpoints:
        assert_trees_equal(checkpoints.restore(3, jax.eval_shape(lambda: state_at(0))), state_at(3))
        checkpoints.drop_after(None)
        assert checkpoints.latest_step is None


def test_progress_from_before_there_were_leaders(tmp_path):
    progress = RunProgress(("a",), phase=1, best_step=3)
    earlier = dataclasses.asdict(progress)
    del earlier["top_k"]
    with ocp.CheckpointManager(tmp_path, item_names=("state", "progress")) as manager:
        items = {"progress": ocp.args.JsonSave(earlier), "state": ocp.args.PyTreeSave({"a": 1})}
        manager.save(3, args=ocp.args.Composite(**items))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.progress() == progress


def test_a_checkpoint_in_format_1(tmp_path):
    progress = RunProgress(
        ("a",),
        phase_epochs=3,
        epochs_without_improvement=2,
        best=0.1,
        best_step=3,
        top_k=((3, 0.1),),
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(3), progress)
    file = tmp_path / "3/progress/metadata"
    content = json.loads(file.read_text())
    content["format"] = 1
    content["waited"] = content.pop("epochs_without_improvement")
    content["leaders"] = content.pop("top_k")
    file.write_text(json.dumps(content))
    integrity.write(tmp_path / "3")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.progress() == progress
        checkpoints.save(state_at(4), checkpoints.progress())
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.progress()) == (4, progress)


def test_a_step_is_written_anew_where_its_progress_is_another(tmp_path):
    first, second = RunProgress(("a",), trained=True), RunProgress(("a",), phase_epochs=1)
    written = []
    with Checkpoints(tmp_path) as checkpoints:
        for progress in (first, first, second):
            checkpoints.save(state_at(3), progress)
            checkpoints.wait()
            written.append((tmp_path / "3/checksums.json").stat().st_mtime_ns)
    assert written[0] == written[1] < written[2]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.progress() == second
        assert_trees_equal(checkpoints.restore(3, jax.eval_shape(lambda: state_at(0))), state_at(3))


@pytest.mark.parametrize("fails", ["save", "killed", "finalize"])
def test_a_step_that_cannot_be_written_anew_stays_as_it_was(tmp_path, monkeypatch, fails):
    first, second = RunProgress(("a",), trained=True), RunProgress(("a",), phase_epochs=1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(3), first)

    def fail(*_, **__):
        if fails == "killed":
            raise KeyboardInterrupt
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save_anew():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(state_at(3), second)
            checkpoints.wait()

    with monkeypatch.context() as patched:
        if fails == "finalize":  # orbax's commit is there, and no checksums
            patched.setattr(integrity, "write", fail)
        else:
            patched.setattr(ocp.CheckpointManager, "save", fail)
        if fails == "killed":
            with pytest.raises(KeyboardInterrupt):
                save_anew()
        else:
            with pytest.raises(UserError, match="the last good one is of step 3"):
                save_anew()
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.progress()) == (3, first)
        assert_trees_equal(checkpoints.restore(3, jax.eval_shape(lambda: state_at(0))), state_at(3))
        checkpoints.save(state_at(3), second)
        checkpoints.save(state_at(4), second)
    assert steps_in(tmp_path) == [3, 4]
    assert not (tmp_path / "replaced").exists()


def test_a_process_that_ends_after_the_replacement_keeps_the_new_one(tmp_path):
    first, second = RunProgress(("a",), trained=True), RunProgress(("a",), phase_epochs=1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(3), first)
    old = shutil.copytree(tmp_path / "3", tmp_path / "old")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(3), second)
    (tmp_path / "replaced").mkdir()
    old.rename(tmp_path / "replaced/3")
    with Checkpoints(tmp_path, read_only=True):
        assert (tmp_path / "replaced").exists()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.progress() == second
    assert not (tmp_path / "replaced").exists()


def test_a_step_that_is_not_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(3), RunProgress(("a",)))
        with pytest.raises(UserError, match=f"{tmp_path}: there is no valid checkpoint of step 2"):
            checkpoints.restore(2, state_at(0))
        with pytest.raises(UserError, match="step 2"):
            checkpoints.restore_variables(2, state_at(0).variables)


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(console, "log_info", lines.append)
    return lines


def three(folder, best=(1, 0.5)):
    """Checkpoints of the steps 1, 2 and 3; the best is `best`."""
    progress = RunProgress(("a",), best_step=best[0], best=best[1])
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state_at(step), progress)
    return progress


def damage(folder):
    """Flips a byte of the state's largest file."""
    path = max((p for p in (folder / "state").rglob("*") if p.is_file()), key=_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.relative_to(folder)


def _size(path):
    return path.stat().st_size


def test_goes_back_to_the_last_good_step(tmp_path, said):
    three(tmp_path)
    name = damage(tmp_path / "3")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 2
        assert_trees_equal(checkpoints.restore(2, jax.eval_shape(lambda: state_at(0))), state_at(2))
        assert (tmp_path / "broken/3").is_dir()
        checkpoints.save(state_at(3), checkpoints.progress())
    assert said == [
        f"the checkpoint {tmp_path}/3 is corrupt: {name} has other bytes than were written; "
        f"it was moved to {tmp_path}/broken/3"
    ]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 3
    assert len(said) == 1


def test_goes_back_as_far_as_the_best(tmp_path, said):
    three(tmp_path)
    damage(tmp_path / "3")
    (tmp_path / "2/checksums.json").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 1
    assert len(said) == 2
    assert "checksums.json, which is written last, is missing" in said[1]


def test_reading_moves_nothing(tmp_path, said):
    three(tmp_path)
    damage(tmp_path / "3")
    for _ in range(2):
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            assert checkpoints.latest_step == 2
            with pytest.raises(UserError, match="no valid checkpoint of step 3"):
                checkpoints.restore(3, state_at(0))
    assert steps_in(tmp_path) == [1, 2, 3]
    assert len(said) == 2


def test_a_run_may_go_back_further(tmp_path, said):
    three(tmp_path)
    damage(tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        assert [checkpoints.latest_before(step) for step in (4, 3, 2, 1)] == [3, 1, 1, None]
        checkpoints.save(state_at(4), checkpoints.progress())
        checkpoints.drop_after(1)
        assert (checkpoints.latest_step, checkpoints.last_committed_step) == (1, 1)
        assert steps_in(tmp_path) == [1]
        checkpoints.save(state_at(2), checkpoints.progress())
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 2
        checkpoints.drop_after(None)
        assert checkpoints.latest_step is None
    assert steps_in(tmp_path) == []
    assert len(said) == 1


def test_where_nothing_is_good(tmp_path, said):
    three(tmp_path)
    for step in (1, 2, 3):
        damage(tmp_path / str(step))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step is None
        checkpoints.save(state_at(1), RunProgress(("a",)))
    assert steps_in(tmp_path) == [1]
    assert len(said) == 3


@pytest.mark.parametrize("how", ["broken", "gone"])
def test_a_best_checkpoint_that_is_lost(how, tmp_path, said):
    three(tmp_path)
    damage(tmp_path / "1")
    if how == "gone":
        shutil.rmtree(tmp_path / "1")
    for read_only in (True, False):
        with Checkpoints(tmp_path, read_only=read_only) as checkpoints:
            assert checkpoints.latest_step == 3
            assert (checkpoints.progress().best_step, checkpoints.progress().best) == (None, None)
    line = "the best checkpoint, of step 1, is lost; the one of step 3 takes its place"
    assert said[-1] == f"{tmp_path}: {line}"
    assert len(said) == (4 if how == "broken" else 2)


def test_a_stray_folder_is_no_checkpoint(tmp_path, said):
    three(tmp_path)
    (tmp_path / "99").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 3
        checkpoints.save(state_at(4), checkpoints.progress())
    assert steps_in(tmp_path) == [1, 3, 4]
    assert said[0].startswith(f"the checkpoint {tmp_path}/99 is corrupt: checksums.json and its p")


def test_what_a_killed_process_left_is_removed(tmp_path):
    three(tmp_path)
    left = tmp_path / "4.orbax-checkpoint-tmp"
    left.mkdir()
    (left / "half").write_text("")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 3
        checkpoints.save(state_at(4), checkpoints.progress())
    assert not left.exists()
    assert steps_in(tmp_path) == [1, 3, 4]


def test_a_later_format(tmp_path):
    three(tmp_path)
    progress = tmp_path / "3/progress/metadata"
    progress.write_text(json.dumps(json.loads(progress.read_text()) | {"format": 3}))
    integrity.write(tmp_path / "3")
    with pytest.raises(
        UserError, match=rf"{tmp_path}/3: a checkpoint of format 3, expected at most 2"
    ):
        Checkpoints(tmp_path)
    assert steps_in(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_restores_onto_any_devices(devices, tmp_path):
    state = state_at(7)
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(256, 8)), jnp.float32)
    state = state.replace(params={"dense": {"kernel": kernel}})
    eight = sharding.Layout(sharding.mesh(), "fsdp")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(jax.device_put(state, eight.of(state)), RunProgress(("a",)))
        mesh = sharding.mesh(jax.devices()[:devices])
        like = jax.eval_shape(lambda: state)
        for name in sharding.LAYOUTS:
            layout = sharding.Layout(mesh, name)
            found = checkpoints.restore(7, like, layout)
            places = jax.tree.map(lambda x: x.sharding, found)
            assert jax.tree.leaves(places) == jax.tree.leaves(layout.of(like))
            assert_trees_equal(found, state)
            found = checkpoints.restore_variables(7, like.variables, layout=layout)
            assert_trees_equal(found, state.variables)
        assert len(checkpoints.restore(7, like).params["dense"]["kernel"].devices()) == 1


@pytest.fixture
def small_disk():
    """A context in which no file of this process may grow beyond half a megabyte."""

    @contextlib.contextmanager
    def limited():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


def large(step):
    noise = np.random.default_rng(step).normal(size=(2, 2**18)).astype(np.float32)
    return state_at(step).replace(params={"dense": {"kernel": jnp.asarray(noise)}})


def save_large(folder, steps):
    with Checkpoints(folder) as checkpoints:
        for step in steps:
            checkpoints.save(large(step), checkpoints.progress())


def test_a_disk_that_fills_while_a_checkpoint_is_written(tmp_path, small_disk):
    expected = (
        f"{tmp_path}: the checkpoint of step 3 could not be written: File too large; the last "
        "good one is of step 2"
    )
    for wait in (True, False):  # in the next save, or at the end
        three(tmp_path)
        shutil.rmtree(tmp_path / "3")
        with small_disk(), pytest.raises(UserError, match=expected):
            save_large(tmp_path, [3, 4] if wait else [3])
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.latest_step == 2
            assert_trees_equal(
                checkpoints.restore(2, jax.eval_shape(lambda: state_at(0))), state_at(2)
            )
            checkpoints.save(state_at(3), checkpoints.progress())
        assert steps_in(tmp_path) == [1, 2, 3]
        shutil.rmtree(tmp_path)


def test_what_went_wrong_first_counts(tmp_path, small_disk):
    with small_disk(), pytest.raises(ZeroDivisionError):
        save_and_fail(tmp_path)


def save_and_fail(folder):
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(large(3), RunProgress(("a",)))
        raise ZeroDivisionError
