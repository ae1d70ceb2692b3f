import json
import os

import numpy as np
import pytest

import bloodjax
from bloodjax.adaptation import adapter
from bloodjax.data import images as images_lib
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.evaluation.appearance import Appearance

CLASSES = "basophil,eosinophil,lymphocyte,monocyte,neutrophil"


def write(folder, images, names, labels=None):
    for i, image in enumerate(images):
        path = folder / ("" if labels is None else names[labels[i]]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images_lib.encode_png(image))
    return str(folder)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Rendered cells at half the size, under a bluish light: (unlabelled, labelled) folders."""
    folder = tmp_path_factory.mktemp("site")
    cells = render.render_dataset(80, 32, seed=7)
    kept = np.isin(cells.labels, [cells.classes.index(name) for name in CLASSES.split(",")])
    cells = cells.take(kept)
    look = Appearance(background=(250.0, 240.0, 235.0), target=(200.0, 210.0, 230.0), zoom=0.6)
    changed = np.asarray(look.apply(np.asarray(cells.images)))
    rest, few = slice(0, -15), slice(-15, None)
    return (
        write(folder / "all", changed[rest], cells.classes),
        write(folder / "few", changed[few], cells.classes, cells.labels[few]),
    )


@pytest.fixture(scope="module")
def adapted(trained, site, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "there"
    about = adapter.adapt(trained, site[0], out, classes=CLASSES)
    return out, about


@pytest.mark.full
def test_the_adapted_run_answers_for_its_site(adapted, site):
    out, about = adapted
    assert json.loads((out / "adaptation.json").read_text()) == about
    model = bloodjax.load(out)
    assert model.possible_classes == tuple(CLASSES.split(","))
    absent = [i for i, name in enumerate(model.classes) if name not in model.possible_classes]
    images = render.render_dataset(8, 32, seed=3).images
    assert not model.predict(images)[:, absent].any()
    assert about["site"]["n"] == len(os.listdir(site[0]))
    assert "Another laboratory: there" in (out / "report" / "site.html").read_text()


@pytest.mark.full
def test_small_cells_are_enlarged(adapted):
    out, about = adapted
    size = next(remedy for remedy in about["remedies"] if remedy["name"] == "size")
    assert size["applied"]
    assert 1.2 < size["check"]["factor"] <= 2.0
    appearance = bloodjax.load(out).site.appearance
    assert appearance.zoom == pytest.approx(size["check"]["factor"])


@pytest.mark.full
def test_estimates_come_with_intervals(adapted):
    _, about = adapted
    for when in ("before", "after"):
        found = about["accuracy_estimate"][when]
        assert 0 <= found["low"] <= found["estimate"] <= found["high"] <= 1
        assert found["is_extrapolated"] == (found["unlike"] > 0.25)
        promise = about["referral"][when]
        assert 0 <= promise["referred"] <= 1
    shares = about["shares"]
    assert sum(shares["site"]) == pytest.approx(1, abs=1e-6)
    assert shares["classes"] == list(bloodjax.load(adapted[0]).classes)


@pytest.mark.slow
def test_labelled_cells_are_learned(trained, site, tmp_path):
    out = tmp_path / "there"
    about = adapter.adapt(trained, site[0], out, labelled_data=site[1], classes=CLASSES)
    assert about["labelled"]["cross_validation"]["n"] > 0
    assert set(about["labelled"]["home"]) == {"before", "after", "n"}
    model = bloodjax.load(out)
    assert model.is_calibrated
    assert model.referral is not None
    assert model.detector is not None
    result = bloodjax.evaluate(out, site[1])
    assert result["source"]["trained_on"] == 15


def test_wrong_input_is_one_line_and_nothing_is_written(trained, site, tmp_path):
    out = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        ({"data": str(empty)}, "contains no readable images"),
        ({"classes": "monocyte,unicorn"}, "--classes=monocyte,unicorn: 'unicorn' is no class"),
        ({"labelled_data": site[1], "data": site[1]}, "15 images of it are also in --data"),
        ({"labelled_data": site[1], "classes": "monocyte,platelet"}, "has images of basophil"),
        ({"workdir": tmp_path}, "no run is here"),
        ({"out": trained}, "exists already, expected a new folder"),
    ]
    for changes, message in cases:
        arguments = {"workdir": trained, "data": site[0], "out": out} | changes
        workdir, data, to = (arguments.pop(name) for name in ("workdir", "data", "out"))
        with pytest.raises(UserError, match=message) as caught:
            adapter.adapt(workdir, data, to, **arguments)
        assert "\n" not in str(caught.value)
        assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]
