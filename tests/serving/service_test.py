import dataclasses
import io
import json
import threading

import numpy as np
import PIL.Image
import pytest

from bloodjax.data import images
from bloodjax.errors import UserError
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.serving.limits import Refused

service = pytest.importorskip("bloodjax.serving.service", reason="needs the extra [serve]")
Upload = pytest.importorskip("bloodjax.serving.uploads", reason="needs the extra [serve]").Upload


@pytest.fixture
def answering(colours, limits, tmp_path):
    made = service.Service(colours, [tmp_path], limits, neighbours_of=0)
    yield made
    made.close()


def test_answers_and_errors_keep_the_order(answering, plain):
    results = answering.predict(
        [
            Upload("red.png", plain(200, 20, 20)),
            Upload("broken.png", plain(200, 20, 20)[:60]),
            Upload("text.txt", b"no image"),
            Upload("large.png", b"", "larger than the limit of 1 MB"),
            Upload("empty.png", b""),
            Upload("bomb.png", plain(0, 200, 0, (101, 100))),
            Upload("green.png", plain(0, 200, 0)),
        ]
    )
    assert [result.predicted for result in results] == ["red", *[None] * 5, "green"]
    assert results[0].probabilities.keys() == {"red", "green", "<b>blue</b>"}
    assert sum(results[0].probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert (results[0].confidence, results[0].error) == (results[0].probabilities["red"], None)
    assert [result.error for result in results[2:6]] == [
        "unknown image format",
        "larger than the limit of 1 MB",
        "an empty file",
        "100x101 pixels, expected at most 10000",
    ]
    assert results[1].error
    assert all(result.refer for result in results[1:6])


def test_why_an_image_is_referred(answering, plain):
    colours = [(200, 0, 0), (90, 90, 80), (6, 0, 0), (7, 7, 7)]
    results = answering.predict([Upload("a", plain(*colour)) for colour in colours])
    assert [(result.refer, result.why) for result in results] == [
        (False, ""),
        (True, "unsure"),
        (True, "unlike the training cells"),
        (True, "unsure, unlike the training cells"),
    ]


def test_a_run_without_a_rule_refers_nothing_and_keeps_nothing(
    answering, colours, plain, monkeypatch
):
    answer = colours.answer

    def unknown(images, tta=None):
        return dataclasses.replace(answer(images, tta), is_judged=False)

    monkeypatch.setattr(colours, "answer", unknown)
    (result,) = answering.predict([Upload("a", plain(200, 0, 0))])
    assert result.refer is None


def test_the_classifier_gets_what_predict_reads(answering, colours, limits, monkeypatch):
    given = []
    answer = colours.answer
    monkeypatch.setattr(colours, "answer", lambda x, tta: (given.append(x), answer(x))[1])
    rng = np.random.default_rng(0)
    encoded = images.encode_png(rng.integers(0, 256, (60, 90, 3), np.uint8))
    answering.predict([Upload("a.png", encoded)])
    size = colours.config.data.image_size
    np.testing.assert_array_equal(given[0][0], images.decode(encoded, size))


def test_what_reading_had_to_decide_is_said(answering, plain):
    assert answering.predict([Upload("a", plain(1, 2, 3))])[0].notes == []
    long = answering.predict([Upload("a", plain(1, 2, 3, (40, 90)))])[0]
    assert "cropped to the central square" in long.notes[0]


@pytest.mark.parametrize("bits", ["auto", "12"])
def test_images_of_more_than_8_bits_are_read_as_predict_reads_them(
    colours, limits, tmp_path, make_config, bits
):
    colours.config = make_config(**{"data.bits": bits})
    answering = service.Service(colours, [tmp_path], limits, neighbours_of=0)
    values = np.full((40, 40), 3000, np.uint16)
    file = io.BytesIO()
    PIL.Image.fromarray(values).save(file, "PNG")
    (result,) = answering.predict([Upload("deep.png", file.getvalue())])
    assert result.error is None
    assert result.predicted
    assert "12 bits" in result.notes[0]
    assert answering.preview(Upload("deep.png", file.getvalue()))
    answering.close()


def test_the_map_of_an_image_is_of_the_class_that_it_is_answered_with(
    colours, limits, tmp_path, plain, monkeypatch
):
    """The answer has the views of the server, so the map's class must have them, too."""
    answer = colours.answer

    def with_views(given, tta=None):
        return answer([image[..., ::-1] if tta == "flip" else image for image in given])

    monkeypatch.setattr(colours, "answer", with_views)
    answering = service.Service(colours, [tmp_path], limits, tta="flip", neighbours_of=0)
    upload = Upload("a.png", plain(200, 20, 20))
    assert answering.predict([upload])[0].predicted == "<b>blue</b>"
    assert answering.explain(upload, None) == answering.explain(upload, "<b>blue</b>")
    answering.close()


def test_a_heat_map_is_of_the_class_that_is_asked_for(answering, plain):
    upload = Upload("a.png", plain(200, 20, 20, (30, 50)))
    drawn = {
        name: images.decode_whole(answering.explain(upload, name))[0]
        for name in ("red", "green", "<b>blue</b>", None)
    }
    assert drawn["red"].shape == (30, 50, 3)
    np.testing.assert_array_equal(drawn[None], drawn["red"])
    assert len({drawn[name].tobytes() for name in drawn}) == 3
    with pytest.raises(Refused, match="unknown class, expected one of red, green"):
        answering.explain(upload, "yellow")
    with pytest.raises(Refused, match="an empty file"):
        answering.explain(Upload("a", b""), None)


def test_a_heat_map_is_of_the_pixels_that_predict_sees(colours, tmp_path, monkeypatch):
    """A frame of 240 pixels is another part of the image once the image is smaller."""
    given = []

    def explain(self, seen, chosen):
        given.extend(seen)
        return [np.ones(seen[0].shape[:2], np.float32)], chosen

    monkeypatch.setattr(type(colours), "explain", explain)
    answering = service.Service(colours, [tmp_path], service.Limits(), neighbours_of=0)
    whole = np.random.default_rng(0).integers(0, 256, (600, 900, 3)).astype(np.uint8)
    drawn = images.decode_whole(answering.explain(Upload("a", images.encode_png(whole)), "red"))[0]
    np.testing.assert_array_equal(given[0], whole)
    assert drawn.shape == (341, 512, 3)
    answering.close()


def test_a_preview_is_small(answering, colours, limits, tmp_path):
    big = images.encode_png(np.zeros((90, 1100, 3), np.uint8))
    with pytest.raises(Refused, match="1100x90 pixels"):
        answering.preview(Upload("a", big))
    wide = service.Service(colours, [tmp_path], service.Limits(), neighbours_of=0)
    assert images.decode_whole(wide.preview(Upload("a", big)))[0].shape == (42, 512, 3)


def test_about_the_classifier(answering):
    about = answering.about()
    assert about["classes"] == ["red", "green", "<b>blue</b>"]
    assert about["runs"][0]["network"] == "simple_cnn"
    assert about["limits"]["files"] == 5
    assert about["metrics"] == {}
    assert about["nearest"] == {"state": "none", "note": "Turned off for this server."}


def test_figures_of_the_run(colours, limits, tmp_path):
    folder = tmp_path / "evaluate" / "test"
    folder.mkdir(parents=True)
    point = {"coverage": 0.97, "threshold": colours.referral.threshold}
    content = {
        "n": 9,
        "accuracy": 0.9,
        "ci95": {"accuracy": [0.8, 1.0], "other": [0, 1]},
        "selective": {"operating_point": point},
    }
    (folder / "metrics.json").write_text(json.dumps(content))
    figures = service.Service(colours, [tmp_path], limits).about()["metrics"]
    assert figures == {
        "n": 9,
        "accuracy": 0.9,
        "ci95": {"accuracy": [0.8, 1.0]},
        "operating_point": point,
    }
    point["threshold"] /= 2
    (folder / "metrics.json").write_text(json.dumps(content))
    figures = service.Service(colours, [tmp_path], limits).about()["metrics"]
    assert figures["operating_point"] is None, "it is of another threshold"
    (folder / "metrics.json").write_text("[]")
    assert service.Service(colours, [tmp_path], limits).about()["metrics"] == {}


def test_a_service_that_stops_reads_no_more_images(colours, limits, tmp_path):
    stopping = service.Service(colours, [tmp_path], limits)
    stopping.close()
    with pytest.raises(Refused, match="the server is stopping"):
        stopping.predict([Upload("a.png", b"")])


def test_the_nearest_training_cells(colours, limits, tmp_path, plain, monkeypatch):
    reached, released = threading.Event(), threading.Event()

    def prepare(model, workdir, count, on_progress):
        on_progress(3, 10)
        reached.set()
        released.wait(10)
        features = np.eye(3, dtype=np.float32)
        labels = np.arange(3)
        return service.TrainingCells(("a\udce9", "b", "c"), labels, features, None, "gone.zip: no")

    monkeypatch.setattr(service.neighbours, "prepare", prepare)
    answering = service.Service(colours, [tmp_path], limits, neighbours_of=3)
    answering.start()
    assert reached.wait(10)
    before = answering.nearest(Upload("a", plain(0, 200, 0)))
    assert before == service.Nearest("preparing", "3 of 10 training cells are prepared.", [])
    released.set()
    answering._thread.join()
    found = answering.nearest(Upload("a", plain(0, 200, 0)))
    assert (found.state, found.note) == ("ready", "The run's training images cannot be read here.")
    assert next(cell.label for cell in found.cells) == "green"
    assert {cell.name for cell in found.cells} == {r"a\udce9", "b", "c"}
    assert found.cells[0].picture is None
    answering.close()


def test_no_training_cells(colours, limits, tmp_path, plain, monkeypatch):
    def prepare(*args):
        raise UserError("/a/secret/place/train.zip: no such file or folder")

    monkeypatch.setattr(service.neighbours, "prepare", prepare)
    answering = service.Service(colours, [tmp_path], limits)
    answering.start()
    answering._thread.join()
    found = answering.nearest(Upload("a", plain(0, 200, 0)))
    assert found == service.Nearest("none", "The run's training images cannot be read here.", [])
    answering.close()


def test_closing_ends_the_preparation(colours, limits, tmp_path, monkeypatch):
    reached = threading.Event()

    def prepare(model, workdir, count, on_progress):
        reached.set()
        while True:
            on_progress(0, 10)

    monkeypatch.setattr(service.neighbours, "prepare", prepare)
    answering = service.Service(colours, [tmp_path], limits)
    answering.start()
    assert reached.wait(10)
    answering.close()
    assert not answering._thread.is_alive()
    assert answering._nearest_state() == "preparing"


def test_an_ensemble(colours, limits, tmp_path, plain, monkeypatch):
    def prepare(model, *args):
        features = service.neighbours.describe(model, np.uint8(np.eye(3)[:, None, None] * 200))
        return service.TrainingCells(("r", "g", "b"), np.arange(3), features, None)

    monkeypatch.setattr(service.neighbours, "prepare", prepare)
    ensemble = Ensemble({tmp_path / "a": colours, tmp_path / "b": colours})
    monkeypatch.setattr(Ensemble, "answer", lambda self, x, tta: colours.answer(x))
    answering = service.Service(ensemble, [tmp_path / "a", tmp_path / "b"], limits)
    about = answering.about()
    assert [run["name"] for run in about["runs"]] == ["a", "b"]
    assert about["network"] == "simple_cnn, simple_cnn"
    assert answering.predict([Upload("a", plain(0, 200, 0))])[0].predicted == "green"
    monkeypatch.setattr(Ensemble, "explain", lambda self, images, chosen: (None, None))
    answering.start()
    answering._thread.join()
    found = answering.nearest(Upload("a", plain(0, 200, 0)))
    assert (found.state, found.cells[0].name) == ("ready", "g")
    assert found.cells[0].similarity == pytest.approx(1, abs=1e-4)
    answering.close()
