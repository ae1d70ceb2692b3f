import numpy as np
import pytest

from bloodjax.evaluation import answers
from bloodjax.evaluation.answers import UNLIKE, UNSURE

PROBABILITIES = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]], np.float32)


def test_an_image_is_referred_for_each_reason_and_for_both():
    unlike = np.array([False, True, True])
    found = answers.judge(PROBABILITIES, threshold=0.75, unlike=unlike, distance=np.arange(3.0))
    assert found.predicted.tolist() == [0, 1, 1]
    np.testing.assert_allclose(found.confidence, [0.9, 0.6, 0.8])
    assert found.refer.tolist() == [False, True, True]
    assert found.why == ("", f"{UNSURE}, {UNLIKE}", UNLIKE)
    assert found.unsure.tolist() == [False, True, False]
    assert found.unlike.tolist() == unlike.tolist()
    assert found.is_judged
    assert len(found) == 3


def test_a_confidence_at_the_threshold_is_answered():
    found = answers.judge(PROBABILITIES, threshold=float(PROBABILITIES[1, 1]))
    assert not found.refer.any()


def test_an_image_of_unknown_confidence_is_referred():
    found = answers.judge(np.full((1, 2), np.nan, np.float32), threshold=0.5)
    assert (found.refer.tolist(), found.why) == ([True], (UNSURE,))


def test_nothing_is_said_on_referral_where_nothing_is_known():
    found = answers.judge(PROBABILITIES)
    assert not found.is_judged
    assert answers.columns(found) == answers.columns(None) == {}
    assert answers.remarks(found) == []


def test_the_columns_of_what_is_known():
    sets = PROBABILITIES > 0.3
    found = answers.judge(PROBABILITIES, threshold=0.75, sets=sets)
    columns = answers.columns(found)
    assert columns["refer"].tolist() == [False, True, False]
    assert columns["why"] == ("", UNSURE, "")
    assert columns["sets"] is sets


def test_no_images():
    found = answers.judge(np.zeros((0, 2), np.float32), threshold=0.5, unlike=np.zeros(0, bool))
    assert len(found) == 0
    assert found.why == ()
    assert answers.unlike_remark(0, 0) is None


@pytest.mark.parametrize(
    ("unlike", "n", "is_far"),
    [
        (1, 100, False),
        (1, 1, False),
        (2, 2, True),
        (3, 100, False),
        (100, 5000, False),
        (9, 100, True),
    ],
)
def test_images_are_unlike_if_far_more_are_rejected_than_expected(unlike, n, is_far):
    remark = answers.unlike_remark(unlike, n)
    assert (remark is not None) == is_far
    if is_far:
        assert f"{unlike} of {n} " in remark
        assert "\n" not in remark


def test_the_lines_of_predict():
    unlike = np.array([False, True, True])
    found = answers.judge(PROBABILITIES, threshold=0.75, unlike=unlike, distance=np.arange(3.0))
    lines = answers.remarks(found)
    assert lines[0] == f"2 of 3 referred to a person: 1 {UNSURE}, 2 {UNLIKE}"
    assert lines[1].startswith("these images are unlike the training ones: 2 of 3 (66.7 %)")


@pytest.mark.parametrize(
    "judge",
    [
        lambda rows: answers.judge(PROBABILITIES[rows]),
        lambda rows: answers.judge(
            PROBABILITIES[rows],
            threshold=0.75,
            unlike=np.array([False, True, True])[rows],
            distance=np.arange(3.0)[rows],
            sets=PROBABILITIES[rows] > 0.3,
        ),
        lambda rows: answers.judge_labels(PROBABILITIES[rows], (0.5, 0.7)),
    ],
)
def test_answers_to_parts_are_those_to_all(judge):
    found = answers.concatenate([judge(slice(0, 2)), judge(slice(2, 2)), judge(slice(2, 3))])
    expected = judge(slice(None))
    assert type(found) is type(expected)
    assert found.why == expected.why
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value)
