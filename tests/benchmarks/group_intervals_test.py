from benchmarks import group_intervals


def test_the_interval_of_few_groups_holds_more_often_than_the_others():
    ours, plain, images = group_intervals.coverage(5, 0.9, 0.2, 1.0, trials=60)
    assert images < plain < ours
    assert ours > 0.7
