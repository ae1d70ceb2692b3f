"""Tests of bloodjax/report/audit_page.py."""

import base64
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from bloodjax.data.audit import audit
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.report import audit_page


@pytest.fixture(scope="module")
def flawed():
    cells = render.render_dataset(80, seed=3)
    dataset, _ = render.plant_flaws(cells, duplicates=25, conflicts=4, junk=30, seed=1)
    datasets = {"<b>cells</b>": dataset}
    return audit(datasets), datasets


def thumbnails(html):
    encoded = re.findall(r'<img src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in encoded]


def test_write_leaves_the_json_and_a_page_on_its_own(tmp_path, flawed):
    found, datasets = flawed
    path = audit_page.write(found, datasets, tmp_path / "a" / "audit")

    assert path == tmp_path / "a" / "audit" / "index.html"
    assert sorted(file.name for file in path.parent.iterdir()) == ["audit.json", "index.html"]
    assert json.loads(path.with_name("audit.json").read_text()) == found.to_json()
    html = path.read_text()
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "&lt;b&gt;cells&lt;/b&gt; (139)" in html
    assert "<b>cells" not in html


def test_the_page_shows_each_frame_once_and_says_how_many_there_are(tmp_path, flawed):
    found, datasets = flawed
    html = audit_page.write(found, datasets, tmp_path).read_text()

    # One junk image, four conflicts, and as many of 29 groups of duplicates as a section shows.
    shown = thumbnails(html)
    assert len(shown) == 1 + 4 + 20
    np.testing.assert_array_equal(shown[0], render.cartoon(96))
    assert "Shown: 20 of 29." in html
    assert "and 26 more" in html
    first = found.label_conflicts[0]
    np.testing.assert_array_equal(shown[1], datasets[first[0].key].images[first[0].index])
    for image in first:
        assert f"<li>{image.name} <b>{image.label}</b></li>" in html


def test_the_page_of_clean_data_says_so(tmp_path):
    datasets = {"cells": render.render_dataset(64, seed=3)}
    html = audit_page.write(audit(datasets), datasets, tmp_path).read_text()
    assert thumbnails(html) == []
    assert "<br>data: cells from images in memory<br>8 classes: basophil 8, " in html
    assert "<br>left out: nothing" in html
    assert html.count('class="good-text"') == 5


def test_the_page_stays_small_when_images_are_large_and_findings_many(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (120, 224, 224, 3)).astype(np.uint8)
    dataset = dataclasses.replace(
        render.render_dataset(120, 16),
        images=np.concatenate([images[:60], images[:60]]),
        labels=np.repeat([0, 1], 60).astype(np.int32),
        splits=("train",) * 60 + ("test",) * 60,
    )
    found = audit({"noise": dataset})
    assert len(found.exact_duplicates) == len(found.leakage) == len(found.label_conflicts) == 60
    assert audit_page.write(found, {"noise": dataset}, tmp_path).stat().st_size < 3_000_000


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, flawed):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/audit: .*, expected a folder to write to"):
        audit_page.write(*flawed, tmp_path / "file" / "audit")
    assert (tmp_path / "file").read_text() == "in the way"
