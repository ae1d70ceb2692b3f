import copy

import numpy as np
import pytest

from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.serving import neighbours


@pytest.fixture
def train():
    return render.render_dataset(40, 32, seed=3)


@pytest.fixture
def recall(monkeypatch, train):
    """Has a run's training data be `train`, or be gone."""

    def set_up(dataset=train):
        def recalled(*args, **kwargs):
            if dataset is None:
                raise UserError("gone.zip: no such file or folder")
            return dataset

        monkeypatch.setattr(neighbours.saved_splits, "recall", recalled)

    set_up()
    return set_up


def quiet(done, of):
    pass


def test_an_image_is_its_own_nearest(colours, recall, train, tmp_path):
    cells = neighbours.prepare(colours, tmp_path, 40, quiet)
    assert len(cells.names) == 40
    for i in (0, 17):
        features, _ = colours.describe(train.images[i : i + 1])
        (nearest, similarity), (_, second) = cells.nearest(features[0], 2)
        assert cells.names[nearest] == train.names[i]
        assert similarity == pytest.approx(1, abs=1e-5)
        assert second <= similarity
        np.testing.assert_array_equal(cells.image(nearest), train.images[i])


def test_features_are_stored_and_read_again(colours, recall, tmp_path):
    first = neighbours.prepare(colours, tmp_path, 40, quiet)
    before = colours.described
    second = neighbours.prepare(colours, tmp_path, 40, quiet)
    assert colours.described == before + 1  # the probe
    assert second.names == first.names
    np.testing.assert_array_equal(second.features, first.features)
    np.testing.assert_array_equal(second.image(5), first.image(5))


def test_features_of_other_weights_are_computed_again(colours, recall, tmp_path):
    neighbours.prepare(colours, tmp_path, 40, quiet)
    colours.describe = lambda images: (np.asarray(images)[:, 0, 3:6, 0] + 1.0, None)
    done = []
    neighbours.prepare(colours, tmp_path, 40, lambda *args: done.append(args))
    assert done == [(0, 40)]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 damaged", b"\x80\x04."])
def test_a_damaged_file_is_replaced(colours, recall, tmp_path, content):
    file = tmp_path / neighbours.FILE
    file.parent.mkdir()
    file.write_bytes(content)
    assert len(neighbours.prepare(colours, tmp_path, 40, quiet).names) == 40
    assert file.read_bytes() != content


def test_without_the_data_names_and_classes_are_left(colours, recall, tmp_path):
    recall(None)
    with pytest.raises(UserError, match=r"gone\.zip"):
        neighbours.prepare(colours, tmp_path, 40, quiet)
    recall()
    before = neighbours.prepare(colours, tmp_path, 40, quiet)
    recall(None)
    after = neighbours.prepare(colours, tmp_path, 40, quiet)
    assert (after.names, after.image(0)) == (before.names, None)
    assert "gone.zip" in after.missing


def test_a_workdir_that_is_not_writable(colours, recall, tmp_path, caplog):
    (tmp_path / "serve").write_text("a file in place of the folder")
    assert len(neighbours.prepare(colours, tmp_path, 40, quiet).names) == 40
    assert (tmp_path / "serve").read_text() == "a file in place of the folder"


def test_an_ensemble_s_similarity_is_the_mean_of_its_members(colours, recall, train, tmp_path):
    second = copy.copy(colours)
    second.describe = lambda images: (np.asarray(images)[:, 0, :5, 1] + 1.0, None)
    members = {tmp_path / "a": colours, tmp_path / "b": second}
    both, image = Ensemble(members), train.images[:1]
    (tmp_path / "a").mkdir()
    cells = neighbours.prepare(both, tmp_path, 40, quiet)
    assert (tmp_path / "a" / neighbours.ENSEMBLE_FILE).exists()
    found = dict(cells.nearest(neighbours.describe(both, image)[0], 40))
    features = [neighbours.describe(one, train.images) for one in members.values()]
    expected = np.mean([own @ own[0] for own in features], axis=0)
    for index, similarity in found.items():
        assert similarity == pytest.approx(expected[index], abs=1e-5)


def test_an_ensemble_uses_the_first_training_images_that_can_be_read(
    colours, train, tmp_path, monkeypatch
):
    def recalled(config, file, *args, **kwargs):
        if file.parent.name != "b":
            raise UserError(f"{file.parent.name}.zip: no such file or folder")
        return train

    monkeypatch.setattr(neighbours.saved_splits, "recall", recalled)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    read = Ensemble({tmp_path / name: colours for name in ("a", "b")})
    assert neighbours.prepare(read, tmp_path, 9, quiet).image(0) is not None
    gone = Ensemble({tmp_path / name: colours for name in ("a", "c")})
    with pytest.raises(UserError, match=r"a\.zip"):
        neighbours.prepare(gone, tmp_path, 9, quiet)


def test_rare_classes_are_taken_whole():
    labels = np.repeat([0, 1, 2], [100, 2, 50])
    chosen = neighbours._evenly(labels, 30)
    assert np.bincount(labels[chosen]).tolist() == [14, 2, 14]
    assert len(np.unique(chosen)) == 30
    np.testing.assert_array_equal(neighbours._evenly(labels, 1000), np.arange(152))
