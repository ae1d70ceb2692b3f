import dataclasses
import json
import pathlib

import numpy as np
import pytest

from bloodjax import config as config_lib
from bloodjax.cli import console
from bloodjax.data import fingerprint
from bloodjax.data.dataset import Dataset
from bloodjax.errors import UserError
from bloodjax.training import distillation, saved_splits
from bloodjax.training.input_pipeline import Splits

CLASSES = ("a", "b", "c")


def dataset(seed, n=12):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 16, 16, 3)).astype(np.uint8)
    labels = (np.arange(n) % 3).astype(np.int32)
    names = tuple(f"{seed}-{i}" for i in range(n))
    return Dataset(images, labels, names, CLASSES, ("",) * n, ("",) * n)


SPLITS = Splits(dataset(0), dataset(1), dataset(2))


@dataclasses.dataclass
class Teacher:
    """Predicts the red, green and blue of the first pixel."""

    config: config_lib.Config
    classes: tuple[str, ...] = CLASSES
    runs: dict = dataclasses.field(default_factory=dict)

    def predict(self, images, tta):
        assert tta == "none"
        first = np.asarray(images)[:, 0, 0].astype(np.float64) + 1
        return first / first.sum(axis=1, keepdims=True)

    def networks(self, order):
        return (), (np.float32(order),)


def write_splits(folder, **hashes):
    folder.mkdir(exist_ok=True)
    names = {"train": SPLITS.train, "validation": SPLITS.validation, "test": SPLITS.test}
    content = {
        "seed": 0,
        "sources": {n: {"spec": "x.zip", "fingerprint": "blake2b:0"} for n in names},
        "parts": {n: list(d.names) for n, d in names.items()},
        "classes": list(CLASSES),
        "pixels": {
            n: fingerprint.to_text(fingerprint.of_images(hashes.get(n, d).images))
            for n, d in names.items()
        },
        "left_out": [],
    }
    (folder / saved_splits.SPLITS_FILE).write_text(json.dumps(content))


@pytest.fixture
def workdir(tmp_path):
    write_splits(tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def config(make_config):
    values = {"data.image_size": 16, "distill.workdir": "teacher", "distill.temperature": 1.0}
    return make_config(**values)


def expected(order=(0, 1, 2)):
    first = SPLITS.train.images[:, 0, 0].astype(np.float64)[:, list(order)] + 1
    return first / first.sum(axis=1, keepdims=True)


def test_softened_probabilities_are_those_of_divided_logits():
    logits = np.random.default_rng(0).normal(0, 3, (5, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    powers = np.exp(logits / 3) / np.exp(logits / 3).sum(1, keepdims=True)
    np.testing.assert_allclose(distillation.soften(p, 3.0), powers, rtol=1e-5)
    sure = np.array([[1.0, 0.0]])
    np.testing.assert_array_equal(distillation.soften(sure, 5.0), sure)


def test_a_resumed_run_needs_no_teacher_and_has_the_same_numbers(config, workdir):
    first = distillation.soft_targets(config, SPLITS, workdir, Teacher(config))
    np.testing.assert_allclose(first, expected(), rtol=1e-6)
    again = distillation.soft_targets(config, SPLITS, workdir, None)
    np.testing.assert_array_equal(again, first)
    warm = config_lib.validate(
        {**config.to_dict(), "distill": {**config.distill.to_dict(), "temperature": 4.0}}
    )
    softer = distillation.soft_targets(warm, SPLITS, workdir, None)
    np.testing.assert_array_equal(softer, distillation.soften(first, 4.0))


def test_classes_are_mapped_by_name(config, workdir):
    teacher = Teacher(config, ("b", "c", "a"))
    found = distillation.soft_targets(config, SPLITS, workdir, teacher)
    np.testing.assert_allclose(found, expected((2, 0, 1)), rtol=1e-6)
    with pytest.raises(UserError, match=r"has the classes a, b, d; expected those of .*: a, b, c"):
        distillation.soft_targets(config, SPLITS, workdir, Teacher(config, ("a", "b", "d")))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: write_splits(path.parent, train=SPLITS.test), "is of other images"),
    ],
)
def test_stored_probabilities_that_cannot_be_used(damage, message, config, workdir):
    distillation.soft_targets(config, SPLITS, workdir, Teacher(config))
    damage(workdir / distillation.FILE)
    with pytest.raises(UserError, match=f"{distillation.FILE}: {message}.*, expected") as error:
        distillation.soft_targets(config, SPLITS, workdir, None)
    assert "\n" not in str(error.value)


def test_what_is_no_probability_is_refused(config, workdir):
    teacher = Teacher(config)
    teacher.predict = lambda images, tta: np.full((len(images), 3), np.nan)
    with pytest.raises(UserError, match="not finite"):
        distillation.soft_targets(config, SPLITS, workdir, teacher)
    assert not (workdir / distillation.FILE).exists()


def test_a_teacher_that_has_seen_what_the_run_is_evaluated_on(
    config, workdir, tmp_path, monkeypatch
):
    lines = []
    monkeypatch.setattr(console, "log_info", lines.append)
    folder = tmp_path / "teacher"
    write_splits(folder, train=SPLITS.validation)
    teacher = Teacher(config, runs={folder: config, pathlib.Path("model"): config})
    distillation.soft_targets(config, SPLITS, workdir, teacher)
    assert any("was trained on 12 of the 12 validation images" in line for line in lines)
    assert any(line.startswith("model: it is not known") for line in lines)
    write_splits(folder, train=SPLITS.test)
    with pytest.raises(UserError, match="was trained on 12 of the 12 test images; expected"):
        distillation.soft_targets(config, SPLITS, workdir, teacher)
    data = {**config.data.to_dict(), "clean": "report"}
    accepted = config_lib.validate({**config.to_dict(), "data": data})
    distillation.soft_targets(accepted, SPLITS, workdir, teacher)
    assert lines[-3].endswith("the figures on test may be too good")


def test_an_online_teacher_reads_images_as_the_run_does(config, workdir):
    networks, variables = distillation.networks(
        config, SPLITS, workdir, Teacher(config, ("c", "a", "b")), fresh=True
    )
    assert networks == ()
    np.testing.assert_array_equal(variables[0], [1, 2, 0])
    data = {**config.data.to_dict(), "fit": "pad"}
    padded = config_lib.validate({**config.to_dict(), "data": data})
    with pytest.raises(UserError, match=r"has data.fit 'pad', expected that of the run, 'crop'"):
        distillation.networks(config, SPLITS, workdir, Teacher(padded), fresh=True)
    with pytest.raises(UserError, match="has other weights than when"):
        distillation.networks(config, SPLITS, workdir, Teacher(config), fresh=False)
