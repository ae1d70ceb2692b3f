import pytest

from bloodjax.checkpoints.progress import RunProgress


@pytest.mark.parametrize(
    ("larger_is_better", "values"), [(True, (1.0, 2.0, 2.0)), (False, (3.0, 2.0, 2.0))]
)
def test_progress_counts_epochs_without_a_better_value(larger_is_better, values):
    progress = RunProgress(("a", "b"))
    first = progress.after_epoch(values[0], larger_is_better, 10)
    assert first == RunProgress(("a", "b"), 0, 1, 0, values[0], values[0], 10)
    second = first.after_epoch(values[1], larger_is_better, 20)
    assert (second.phase_best, second.best_step, second.waited) == (values[1], 20, 0)
    third = second.after_epoch(values[2], larger_is_better, 30)
    assert (third.best, third.best_step, third.waited) == (values[1], 20, 1)


def test_progress_without_a_value_counts_epochs_alone():
    after = RunProgress(("a",)).after_epoch(None, True, 10)
    assert after == RunProgress(("a",), phase_epochs=1)


def test_a_phase_waits_for_its_own_best():
    progress = (
        RunProgress(("a",)).after_epoch(0.9, True, 10).after_epoch(0.8, True, 20).next_phase()
    )
    assert progress == RunProgress(("a",), 1, 0, 0, None, 0.9, 10)
    after = progress.after_epoch(0.7, True, 30)
    assert (after.phase_best, after.waited, after.best, after.best_step) == (0.7, 0, 0.9, 10)


@pytest.mark.parametrize("larger_is_better", [True, False])
def test_the_best_epochs_so_far_lead(larger_is_better):
    progress, sign = RunProgress(("a",)), 1 if larger_is_better else -1
    seen = []
    for step, value in [(1, 0.5), (2, 0.9), (3, 0.5), (4, 0.7), (5, 0.9)]:
        progress = progress.after_epoch(sign * value, larger_is_better, step, keep=3)
        seen.append([leader for leader, _ in progress.leaders])
    assert seen == [[1], [2, 1], [2, 1, 3], [2, 4, 1], [2, 5, 4]]
    assert progress.leaders[2] == (4, sign * 0.7)
    assert progress.best_step == 2
    assert progress.next_phase().leaders == progress.leaders
    assert progress.after_epoch(sign * 1.0, larger_is_better, 6).leaders == ()


def test_what_a_run_may_go_back_to():
    assert RunProgress(("a",)).needs == set()
    assert RunProgress(("a",), best_step=7, leaders=((7, 0.1), (5, 0.2))).needs == {5, 7}


def test_a_best_checkpoint_that_is_lost():
    progress = RunProgress(("a",), best=0.1, best_step=7, leaders=((7, 0.1), (5, 0.2), (6, 0.3)))
    assert progress.without({1}) == progress
    left = progress.without({7, 6})
    assert (left.best_step, left.best, left.leaders) == (5, 0.2, ((5, 0.2),))
    none = progress.without({5, 6, 7})
    assert (none.best_step, none.best, none.leaders) == (None, None, ())
    assert none.after_epoch(0.9, False, 8).best_step == 8
