import numpy as np
import pytest

from bloodjax.errors import UserError
from bloodjax.planning import images


def test_synthetic_images_are_counted_without_rendering(make_config):
    counts = images.count(make_config(**{"data.train": "synthetic:20000"}))
    assert (counts.train, counts.validation, counts.test) == (14_000, 3000, 3000)
    assert counts.classes == 8
    assert "synthetic:20000" in counts.origin


def test_a_source_that_is_not_here_is_a_guess_that_is_said(make_config):
    counts = images.count(make_config(**{"data.train": "nowhere/cells.zip"}))
    assert counts.train + counts.validation + counts.test == images.DEFAULT_IMAGES
    assert counts.classes == images.DEFAULT_CLASSES
    assert "a guess: nowhere/cells.zip is not here" in counts.origin


def test_the_flags_win(make_config):
    config = make_config(**{"data.validation": "0.25", "data.test": "0"})
    counts = images.count(config, images=1000, classes=3)
    assert (counts.train, counts.validation, counts.test, counts.classes) == (750, 250, 0, 3)
    assert "--images" in counts.origin


@pytest.mark.parametrize("named", [False, True])
def test_a_challenge_file_is_counted_by_its_labels(make_config, tmp_path, named):
    path = tmp_path / "training_set.npz"
    arrays = {"images": np.zeros((40, 8, 8, 3), np.uint8), "labels": np.arange(40)[:, None] % 3}
    if named:
        arrays["classes"] = np.array(["a", "b", "c"])
    np.savez(path, **arrays)
    counts = images.count(make_config(**{"data.train": str(path)}))
    assert (counts.train, counts.validation, counts.test) == (28, 6, 6)
    assert counts.classes == (3 if named else 8)


def test_a_medmnist_file_has_its_own_splits(make_config, tmp_path):
    path = tmp_path / "other.npz"
    sizes = {"train": 30, "val": 10, "test": 20}
    np.savez(path, **{f"{k}_labels": np.arange(n)[:, None] % 5 for k, n in sizes.items()})
    counts = images.count(make_config(**{"data.train": str(path)}))
    assert (counts.train, counts.validation, counts.test, counts.classes) == (30, 10, 20, 5)


def test_a_folder_is_listed_and_not_read(make_config, tmp_path):
    for split, label, n in (
        ("train", "a", 5),
        ("train", "b", 4),
        ("val", "a", 2),
        ("test", "b", 3),
    ):
        for i in range(n):
            file = tmp_path / "cells" / split / label / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"no image")
    counts = images.count(make_config(**{"data.train": str(tmp_path / "cells")}))
    assert (counts.train, counts.validation, counts.test, counts.classes) == (9, 2, 3, 2)


def test_the_rows_of_a_table_are_counted_and_no_image_is_read(make_config, tmp_path):
    rows = [f"{i}.png,{'None' if i % 2 else 'a'},{'test' if i > 5 else 'train'}" for i in range(8)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *rows]))
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    counts = images.count(
        make_config(**{"data.train": str(tmp_path / "labels.csv"), "data.validation": "0"})
    )
    assert (counts.train, counts.validation, counts.test, counts.classes) == (6, 0, 2, 2)


def test_a_validation_set_of_its_own_is_counted_there(make_config):
    config = make_config(**{"data.train": "synthetic:100", "data.validation": "synthetic:50"})
    counts = images.count(config)
    assert (counts.train, counts.validation, counts.test) == (85, 50, 15)


def test_a_damaged_file_is_an_error_in_one_line(make_config, tmp_path):
    path = tmp_path / "damaged.npz"
    np.savez(path, images=np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="contains the arrays images; expected labels too"):
        images.count(make_config(**{"data.train": str(path)}))


def test_of_a_test_set_with_splits_of_its_own_only_test_counts(make_config, tmp_path):
    path = tmp_path / "other.npz"
    sizes = {"train": 30, "val": 10, "test": 20}
    np.savez(path, **{f"{k}_labels": np.arange(n)[:, None] % 5 for k, n in sizes.items()})
    config = make_config(
        **{"data.train": "synthetic:100", "data.validation": "0.1", "data.test": str(path)}
    )
    counts = images.count(config)
    assert (counts.train, counts.validation, counts.test) == (90, 10, 20)
