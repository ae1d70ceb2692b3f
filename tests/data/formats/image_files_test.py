import io
import logging
import zipfile

import numpy as np
import pytest
from PIL import Image

import bloodjax
from bloodjax.data import images, sources
from bloodjax.data.lazy import LazyImages
from bloodjax.data.options import ReadOptions
from bloodjax.errors import UserError

GREYS = np.random.default_rng(0).integers(0, 256, (6, 24, 24)).astype(np.uint16)
GREYS[0, 0, 0] = 255
EXPECTED = np.repeat(GREYS[..., None], 3, axis=-1).astype(np.uint8)


def encoded(values, format="PNG", **settings):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format, **settings)
    return buffer.getvalue()


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(root)


def classes(root, values, format="PNG"):
    """Two class folders with these images."""
    files = {f"{'ab'[i % 2]}/{i}": encoded(one, format) for i, one in enumerate(values)}
    return write(root, files)


def in_order(dataset):
    order = np.argsort([int(name.rpartition("/")[2]) for name in dataset.names])
    return dataset.images[order]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("values", "format", "scale"),
    [
        (GREYS * 4, "TIFF", "10"),
        (GREYS * 16, "PNG", "12"),
        (GREYS * 257, "PNG", "16"),
        (GREYS.astype(np.int32), "TIFF", "8"),
        (GREYS.astype(np.float32) / 255, "TIFF", "0..1"),
        (GREYS.astype(np.float32) * 16, "TIFF", "12"),
    ],
)
def test_the_images_of_a_source_have_one_scale(tmp_path, values, format, scale, lazy):
    values = np.concatenate([values[:3], values[3:] // 8 if scale != "0..1" else values[3:] / 8])
    dataset = sources.load(classes(tmp_path, values, format), 24, lazy=lazy)
    assert isinstance(dataset.images, LazyImages) == lazy
    np.testing.assert_array_equal(in_order(dataset)[:3], EXPECTED[:3])
    assert in_order(dataset)[3:].max() < 40  # dark images stay dark
    assert dataset.reading.tally.scale == scale
    assert any("(largest value" in text for text in dataset.reading.details)


def test_the_scale_can_be_stated(tmp_path):
    spec = classes(tmp_path, GREYS * 16)
    dataset = sources.load(spec, 24, options=ReadOptions(bits="16"))
    np.testing.assert_array_equal(in_order(dataset), EXPECTED // 16)
    with pytest.raises(UserError, match=r"a/0 is not a readable image \(integers of at most 4080"):
        sources.load(spec, 24, options=ReadOptions(bits="10"))


def test_an_image_of_the_run_s_scale_is_read_alike_alone(tmp_path):
    write(tmp_path, {"dark": encoded(GREYS[1] * 2)})
    dataset = sources.load_images(str(tmp_path / "dark"), 24, options=ReadOptions(bits="12"))
    np.testing.assert_array_equal(dataset.images[0], EXPECTED[1] // 8)
    with pytest.raises(UserError, match=r"dark: is not a readable image .*expected floats of 0..1"):
        sources.load_images(str(tmp_path / "dark"), 24, options=ReadOptions(bits="0..1"))


def test_floats_beside_integers_are_an_error(tmp_path):
    files = {"a/1": encoded(GREYS[0] * 16), "b/1": encoded(GREYS[1] / np.float32(255), "TIFF")}
    with pytest.raises(UserError, match=r"some images have floats of 0..1 and others have integ"):
        sources.load(write(tmp_path, files), 24)


def test_what_reading_decided_is_said(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    cell = EXPECTED[0]
    rgba = np.concatenate([cell, np.zeros((24, 24, 1), np.uint8)], -1)
    rgba[0, 0, 3] = 255
    frames = [Image.fromarray(cell), Image.fromarray(EXPECTED[1])]
    stack = io.BytesIO()
    frames[0].save(stack, "TIFF", save_all=True, append_images=frames[1:])
    files = {
        "a/turned.jpg": encoded(cell, "JPEG", exif=exif),
        "a/clear.png": encoded(rgba),
        "a/stack.tif": stack.getvalue(),
        "b/wide.png": encoded(cell[:15]),
        "b/deep.png": encoded(GREYS[0] * 4),
        "b/bad.png": b"",
    }
    spec = write(tmp_path, files)
    options = ReadOptions("skip", fit="pad")
    reading = sources.load(spec, 24, options=options).reading
    assert reading.details == (
        "1 image of more than 8 bits read as 10 bits (largest value 1,020)",
        "orientation of 1 image applied",
        "transparent pixels of 1 image over white",
        "first frame of 1 image with several",
        "1 image whose sides differ by more than a fifth padded to a square (data.fit=pad)",
    )
    assert ("unreadable", "b", 1) in reading.left_out


PREDICTED = {
    "1.png": encoded(EXPECTED[0]),
    "2.jfif": encoded(EXPECTED[1], "JPEG"),
    "3.jpe": encoded(EXPECTED[2], "JPEG"),
    "4": encoded(EXPECTED[3]),
    "5.dib": encoded(EXPECTED[4], "DIB"),
    "6.of.a.slide": encoded(EXPECTED[5], "TIFF"),
    "/".join("abcdefghi") + "/7.webp": encoded(EXPECTED[0], "WEBP"),
}
OTHERS = {"notes.txt": b"P1 is the first patient", "a/table.csv": b"BM,1\n", "scan": bytes(99)}


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return str(path)


def test_predict_takes_every_image_by_its_content(tmp_path, caplog):
    folder = write(tmp_path / "folder", PREDICTED | OTHERS)
    archive = zipped(tmp_path / "all.zip", PREDICTED | OTHERS)
    for spec in (folder, archive):
        caplog.clear()
        dataset = sources.load_images(spec, 24)
        assert dataset.names == tuple(sorted(PREDICTED))
        np.testing.assert_array_equal(dataset.images[0], EXPECTED[0])
        assert ("not an image", "", 3) in dataset.reading.left_out
        assert "skipped 3 files that are not images" in caplog.text
        assert "a/table.csv, notes.txt, scan" in caplog.text


@pytest.mark.parametrize("name", ["2.jfif", "4", "6.of.a.slide"])
def test_one_image_may_have_any_name(tmp_path, name):
    write(tmp_path, PREDICTED)
    dataset = sources.load_images(str(tmp_path / name), 24)
    assert dataset.names == (name,)
    np.testing.assert_array_equal(dataset.images[0], images.decode(PREDICTED[name], 24))


def test_a_file_that_is_no_image_is_an_error(tmp_path):
    write(tmp_path, OTHERS)
    with pytest.raises(UserError, match=r"notes.txt: is not a readable image \("):
        sources.load_images(str(tmp_path / "notes.txt"), 24)
    with pytest.raises(UserError, match="contains no readable images"):
        sources.load_images(str(tmp_path), 24)


def test_a_page_named_as_an_image_is_unreadable(tmp_path, caplog):
    spec = write(tmp_path, PREDICTED | {"page.jpg": b"<!doctype html>"})
    with pytest.raises(UserError, match=r"page.jpg is not a readable image .*bad_images=skip"):
        sources.load_images(spec, 24)
    with caplog.at_level(logging.ERROR):
        dataset = sources.load_images(spec, 24, options=ReadOptions("skip"))
    assert len(dataset) == 7
    assert ("unreadable", "", 1) in dataset.reading.left_out


def test_the_face_reads_with_a_scale_and_a_fit(tmp_path):
    spec = classes(tmp_path, GREYS[:, :12] * 16)
    dataset = bloodjax.load_dataset(spec, 24, bits=16, fit="squash")
    expected = images.resize(EXPECTED[:, :12] // 16, 24, "squash")
    np.testing.assert_array_equal(in_order(dataset), expected)
    with pytest.raises(UserError, match="bits is '11', expected one of auto, 8, 10"):
        bloodjax.load_dataset(spec, 24, bits=11)
    with pytest.raises(UserError, match="fit is 'zoom', expected crop, pad, squash, or a number"):
        bloodjax.load_dataset(spec, 24, fit="zoom")
