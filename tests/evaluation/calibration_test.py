import pytest

from bloodjax.errors import UserError
from bloodjax.evaluation import calibration
from bloodjax.metrics.calibration import NONE, Calibration


def test_what_is_written_is_read(tmp_path):
    found = {"default": Calibration("temperature", 0.7), "none": NONE}
    calibration.write(tmp_path, found, {"n": 3})
    assert calibration.load(tmp_path) == found


def test_an_older_run_has_none(tmp_path):
    assert calibration.load(tmp_path) == {}


@pytest.mark.parametrize("content", ["", "[]", '{"default": {}}', '{"default": {"method": "x"}}'])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(UserError, match=r"calibration\.json: is damaged .*expected the calib"):
        calibration.load(tmp_path)
