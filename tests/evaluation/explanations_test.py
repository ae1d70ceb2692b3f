import numpy as np
import pytest

from bloodjax.attribution.overlay import overlay
from bloodjax.data import images as images_lib
from bloodjax.errors import UserError
from bloodjax.evaluation import explanations
from bloodjax.evaluation.classifier import Classifier

CLASSES = ("a", "b")


class _Model(Classifier):
    """Explains an image by the brightness of its first channel."""

    def __init__(self):
        self.classes, self.batches = CLASSES, []

    def explain(self, images, classes):
        self.batches.append(len(images))
        return [image[..., 0].astype(np.float32) / 255 for image in images], classes


def _images(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]


def _write(folder, images, names):
    predicted = np.arange(len(images)) % 2
    model = _Model()
    explanations.write(model, folder, names, images.__getitem__, predicted)
    with np.load(folder / explanations.MAPS_FILE, allow_pickle=False) as stored:
        return model, {name: stored[name] for name in stored}


def test_maps_of_one_size_are_one_array(tmp_path):
    images = _images((5, 7), (5, 7), (5, 7))
    _, found = _write(tmp_path, images, ["x/1.png", "x/2.png", "3.png"])
    assert sorted(found) == ["files", "maps", "names", "predicted"]
    assert found["names"].tolist() == ["x/1.png", "x/2.png", "3.png"]
    assert found["predicted"].tolist() == ["a", "b", "a"]
    assert found["maps"].dtype == np.float32
    expected = np.stack(images)[..., 0].astype(np.float32) / 255
    np.testing.assert_array_equal(found["maps"], expected)
    for image, heat, name in zip(images, expected, found["files"], strict=True):
        drawn = images_lib.decode_whole((tmp_path / name).read_bytes())[0]
        np.testing.assert_array_equal(drawn, overlay(image, heat))
    assert len(list(tmp_path.iterdir())) == 4


def test_maps_of_several_sizes_are_an_array_each(tmp_path):
    images = _images((5, 7), (4, 4))
    _, found = _write(tmp_path, images, ["1", "2"])
    assert sorted(found) == ["files", "maps_0", "maps_1", "names", "predicted"]
    for i, image in enumerate(images):
        np.testing.assert_array_equal(found[f"maps_{i}"], image[..., 0].astype(np.float32) / 255)


def test_images_are_explained_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(explanations, "_AT_ONCE", 3)
    monkeypatch.setattr(explanations, "_PIXELS_AT_ONCE", 100)
    images = _images((10, 10), *((2, 2),) * 4, (20, 20))
    model, found = _write(tmp_path, images, list("abcdef"))
    assert model.batches == [1, 3, 2]
    np.testing.assert_array_equal(found["maps_5"], images[5][..., 0].astype(np.float32) / 255)


def test_file_names_are_safe_and_different():
    names = [
        *("a/b.png", "a__b.png", "A/B.png", "../../etc/passwd", "/etc/passwd", "..", ""),
        *("c:\\x\\y.tif", ".hidden", "train/7", "blood cell?.jpg", "zell\u00fc.png", "x" * 400),
    ]
    found = explanations.file_names(names)
    assert found[:5] == [
        *("a__b.png", "a__b-2.png", "A__B-3.png", "etc__passwd.png", "etc__passwd-2.png"),
    ]
    assert found[5:7] == ["image.png", "image-2.png"]
    assert found[7:12] == [
        *(
            "c___x__y.png",
            "hidden.png",
            "train__7.png",
            "blood_cell_.png",
            "zell\u00fc.png",
        ),
    ]
    assert len({name.casefold() for name in found}) == len(names)
    assert all("/" not in name and "\\" not in name and len(name) < 200 for name in found)


def test_a_folder_that_cannot_be_made_is_one_line_and_others_are_made_later(tmp_path):
    source = tmp_path / "images"
    with pytest.raises(UserError, match=r"--explain=.*/no/maps: there is no folder .*/no"):
        explanations.check_folder(tmp_path / "no" / "maps", source)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, expected a folder"):
        explanations.check_folder(tmp_path / "file", source)
    explanations.check_folder(tmp_path / "new", source)
    assert not (tmp_path / "new").exists()  # the command may still fail


def test_no_image_is_replaced(tmp_path):
    source = tmp_path / "images"
    (source / "a").mkdir(parents=True)
    image = source / "a" / "1.png"
    image.write_bytes(b"an image")
    for folder in (source, source / "a", source / "new"):
        with pytest.raises(UserError, match="is read for images, expected a folder elsewhere"):
            explanations.check_folder(folder, source)
    for one in (image, tmp_path / "table.csv"):  # a table may name images of any folder
        with pytest.raises(UserError, match=r"has files but no maps.npz; expected a new or empty"):
            explanations.check_folder(source / "a", one)
    assert [path.name for path in source.iterdir()] == ["a"]
    assert image.read_bytes() == b"an image"


def test_a_killed_call_can_be_repeated(tmp_path):
    folder = tmp_path / "maps"

    def stop(i):
        if i:
            raise KeyboardInterrupt
        return _images((300, 300))[0]

    for attempt in range(2):
        explanations.check_folder(folder, tmp_path / "images")
        with pytest.raises(KeyboardInterrupt):
            explanations.write(_Model(), folder, ["a", "b"], stop, np.zeros(2, int))
        with np.load(folder / explanations.MAPS_FILE, allow_pickle=False) as stored:
            assert len(stored["names"]) == 0, attempt
    explanations.check_folder(folder, tmp_path / "images")
    _, found = _write(folder, _images((5, 7)), ["a"])
    assert found["names"].tolist() == ["a"]
