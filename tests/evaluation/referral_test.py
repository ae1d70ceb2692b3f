import numpy as np
import pytest

from bloodjax.errors import UserError
from bloodjax.evaluation import referral

PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])


def test_the_thresholds_of_validation():
    found = referral.fit(PROBABILITIES, np.array([0, 1, 0]), 0.1, 0.5)
    assert (found.threshold, found.n, found.target_error) == (0.8, 3, 0.1)
    # floor(0.5 * 4) = 2: the second lowest probability of a true class.
    assert found.set_threshold == 0.8
    assert found.sets(PROBABILITIES).sum(axis=1).tolist() == [1, 1, 1]
    assert not found.answers_nothing


def test_without_sets():
    assert referral.fit(PROBABILITIES, np.array([0, 1, 0]), 0.1).sets(PROBABILITIES) is None


def test_a_target_that_cannot_be_met_refers_every_image():
    found = referral.fit(PROBABILITIES, np.array([1, 0, 0]), 0.1)
    assert found.answers_nothing
    assert (PROBABILITIES.max(axis=1) < found.threshold).all()


def test_what_is_written_is_read(tmp_path):
    assert referral.load(tmp_path) is None
    found = referral.fit(PROBABILITIES, np.array([0, 1, 0]), 0.1, 0.5)
    referral.write(tmp_path, found)
    assert referral.load(tmp_path) == found


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"target_error": 0.1, "threshold": "x", "n": 1}']
)
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / "referral.json").write_text(content)
    with pytest.raises(UserError, match=r"referral\.json: is damaged .*expected the thresholds"):
        referral.load(tmp_path)
