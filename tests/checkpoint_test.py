import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from bloodjax.checkpoint import Checkpoints, Progress
from bloodjax.errors import UserError
from bloodjax.state import Average, TrainState

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


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert jax.tree.structure(one) == jax.tree.structure(other)


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.mark.parametrize(
    ("larger_is_better", "values"), [(True, (1.0, 2.0, 2.0)), (False, (3.0, 2.0, 2.0))]
)
def test_progress_counts_epochs_without_a_better_value(larger_is_better, values):
    progress = Progress(("a", "b"))
    first = progress.after_epoch(values[0], larger_is_better, 10)
    assert first == Progress(("a", "b"), 0, 1, 0, values[0], values[0], 10)
    second = first.after_epoch(values[1], larger_is_better, 20)
    assert (second.phase_best, second.best_step, second.waited) == (values[1], 20, 0)
    third = second.after_epoch(values[2], larger_is_better, 30)
    assert (third.best, third.best_step, third.waited) == (values[1], 20, 1)


def test_progress_without_a_value_counts_epochs_alone():
    after = Progress(("a",)).after_epoch(None, True, 10)
    assert after == Progress(("a",), phase_epochs=1)


def test_a_phase_waits_for_its_own_best():
    progress = Progress(("a",)).after_epoch(0.9, True, 10).after_epoch(0.8, True, 20).next_phase()
    assert progress == Progress(("a",), 1, 0, 0, None, 0.9, 10)
    after = progress.after_epoch(0.7, True, 30)
    assert (after.phase_best, after.waited, after.best, after.best_step) == (0.7, 0, 0.9, 10)


@pytest.mark.parametrize("larger_is_better", [True, False])
def test_the_best_epochs_so_far_lead(larger_is_better):
    progress, sign = Progress(("a",)), 1 if larger_is_better else -1
    seen = []
    for step, value in [(1, 0.5), (2, 0.9), (3, 0.5), (4, 0.7), (5, 0.9)]:
        progress = progress.after_epoch(sign * value, larger_is_better, step, keep=3)
        seen.append([leader for leader, _ in progress.leaders])
    assert seen == [[1], [2, 1], [2, 1, 3], [2, 4, 1], [2, 5, 4]]
    assert progress.leaders[2] == (4, sign * 0.7)
    assert progress.best_step == 2
    assert progress.next_phase().leaders == progress.leaders
    assert progress.after_epoch(sign * 1.0, larger_is_better, 6).leaders == ()


def test_gives_back_the_same_bits(tmp_path):
    leaders = ((7, 0.3), (5, 0.4))
    state, progress = state_at(7), Progress(("a", "b"), 1, 2, 1, 0.1, 0.3, 7, leaders=leaders)
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.latest_step is None
        checkpoints.save(state, progress)
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.latest_step == 7
        assert checkpoints.progress() == progress
        assert_same(checkpoints.restore(7, jax.eval_shape(lambda: state_at(0))), state)


def test_a_bfloat16_moment_stays_one(tmp_path):
    tx = optax.adamw(1e-3, mu_dtype="bfloat16")
    state = state_at(7, tx)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, Progress(("a",)))
        found = checkpoints.restore(7, jax.eval_shape(lambda: state_at(0, tx)))
    assert_same(found, state)
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
                progress=ocp.args.JsonSave(dataclasses.asdict(Progress(("a",)))),
            ),
        )
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(7, jax.eval_shape(lambda: state_at(0))), state)


def test_an_average_is_kept_and_read_alone(tmp_path):
    state = state_at(7)
    state = state.replace(ema=Average.of(state_at(8).variables))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, Progress(("a",)))
        assert_same(checkpoints.restore(7, jax.eval_shape(lambda: state)), state)
        shapes = jax.eval_shape(lambda: state_at(0).variables)
        found = checkpoints.restore_variables(7, shapes, ema=True)
        assert_same(checkpoints.restore_variables(7, shapes), state.variables)
    assert_same(found, state_at(8).variables)


def test_reads_the_variables_alone(tmp_path):
    state = state_at(7)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, Progress(("a",)))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        shapes = jax.eval_shape(lambda: state_at(0).variables)
        assert_same(checkpoints.restore_variables(7, shapes), state.variables)


def test_keeps_the_latest_and_the_best(tmp_path):
    progress = Progress(("a",))
    with Checkpoints(tmp_path) as checkpoints:
        for step, value in [(1, 0.5), (2, 0.9), (3, 0.7), (4, 0.8)]:
            progress = progress.after_epoch(value, True, step)
            checkpoints.save(state_at(step), progress)
    assert steps_in(tmp_path) == [2, 4]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(5), dataclasses.replace(progress, phase_epochs=5))
    assert steps_in(tmp_path) == [2, 5]


def test_keeps_as_many_of_the_best_as_lead(tmp_path):
    progress = Progress(("a",))
    with Checkpoints(tmp_path) as checkpoints:
        for step, value in [(1, 0.5), (2, 0.9), (3, 0.7), (4, 0.8), (5, 0.1)]:
            progress = progress.after_epoch(value, True, step, keep=2)
            checkpoints.save(state_at(step), progress)
    assert steps_in(tmp_path) == [2, 4, 5]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.progress() == progress


def test_while_steps_are_skipped_the_last_good_one_stays(tmp_path):
    bad = [state_at(step) for step in (3, 4)]
    bad = [state.replace(metrics=state.metrics.replace(bad_step=jnp.int32(2))) for state in bad]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_before(9) is None
        for state in (state_at(1), *bad):
            checkpoints.save(state, Progress(("a",)))
        assert checkpoints.latest_before(2) == 1
        assert checkpoints.latest_before(9) == 4
    assert steps_in(tmp_path) == [1, 4]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.drop_after(1)
        assert checkpoints.latest_step == 1
        checkpoints.save(state_at(3), Progress(("a",)))  # of another course of the run
    assert steps_in(tmp_path) == [3]
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(3, jax.eval_shape(lambda: state_at(0))), state_at(3))
        checkpoints.drop_after(None)
        assert checkpoints.latest_step is None


def test_progress_from_before_there_were_leaders(tmp_path):
    progress = Progress(("a",), phase=1, best_step=3)
    earlier = dataclasses.asdict(progress)
    del earlier["leaders"]
    with ocp.CheckpointManager(tmp_path, item_names=("state", "progress")) as manager:
        item = ocp.args.Composite(progress=ocp.args.JsonSave(earlier))
        manager.save(3, args=item)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.progress() == progress


def test_a_step_is_written_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(3), Progress(("first",)))
        checkpoints.save(state_at(3), Progress(("second",)))
        assert checkpoints.progress().classes == ("first",)


def test_a_step_that_is_not_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(3), Progress(("a",)))
        with pytest.raises(UserError, match=f"{tmp_path}: no checkpoint of step 2"):
            checkpoints.restore(2, state_at(0))
        with pytest.raises(UserError, match="step 2"):
            checkpoints.restore_variables(2, state_at(0).variables)
