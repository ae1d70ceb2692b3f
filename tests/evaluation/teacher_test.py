import shutil

import numpy as np
import pytest

from bloodjax.errors import UserError
from bloodjax.evaluation import classifier, ensemble, teacher


@pytest.mark.full
def test_a_teacher_predicts_as_its_run(trained, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    found = teacher.load([str(trained)], tmp_path)
    model = classifier.load(trained)
    assert (found.classes, list(found.runs)) == (model.classes, [trained])
    np.testing.assert_array_equal(found.predict(images, "none"), model.predict(images, "none"))


@pytest.mark.slow
def test_several_runs_teach_together(trained, tmp_path):
    other = shutil.copytree(trained, tmp_path / "other")
    found = teacher.load([str(trained), str(other)], tmp_path / "student")
    assert list(found.runs) == [trained, other]
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    expected = ensemble.load([trained, other]).predict(images, "d4")
    np.testing.assert_array_equal(found.predict(images, "d4"), expected)


def test_a_teacher_that_is_missing_or_the_run_itself(tmp_path):
    with pytest.raises(UserError, match=r"config\.distill\.workdir: .*: no run is here"):
        teacher.load([str(tmp_path / "none")], tmp_path / "student")
    for student in (tmp_path, tmp_path / "fold0"):
        with pytest.raises(UserError, match="is the run that learns, expected another run"):
            teacher.load([str(tmp_path)], student)
