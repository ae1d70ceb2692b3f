import csv
import subprocess

import numpy as np
import pyarrow.parquet
import pytest

from bloodjax.data import images
from bloodjax.data.synthetic import render
from bloodjax.evaluation import classifier


@pytest.mark.full
def test_classifies_a_folder_of_images(command, trained, tmp_path):
    cells = render.render_dataset(9, 32, seed=4).images
    for i, cell in enumerate(cells):
        path = tmp_path / f"cells/{i % 2}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode_png(cell))
    rows = "".join(f"{i % 2}/{i}.png,P{i // 5}\n" for i in range(9))
    (tmp_path / "cells/groups.csv").write_text(f"name,group\n{rows}")
    out, groups = tmp_path / "out.csv", tmp_path / "groups.csv"
    arguments = [f"--workdir={trained}", f"--input={tmp_path / 'cells'}", f"--out={out}"]
    arguments.append(f"--groups={groups}")
    done = subprocess.run(**command("predict", *arguments), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == f"9 images classified; written to {out}"
    assert f"data: images from {tmp_path / 'cells'} (" in done.stderr
    assert "\nimages: 9\nleft out: nothing\n" in done.stderr
    model = classifier.load(trained)
    with out.open() as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    expected = model.predict(cells)
    for i, probabilities in enumerate(expected):
        row = table[f"{i % 2}/{i}.png"]
        first = ["name", "predicted", "confidence", "refer", "why"]
        assert list(row) == [*first, *model.classes, "group"]
        assert row["group"] == f"P{i // 5}"
        assert row["predicted"] == model.classes[int(probabilities.argmax())]
        np.testing.assert_allclose([float(row[c]) for c in model.classes], probabilities, atol=1e-5)
    with groups.open() as file:
        patients = list(csv.DictReader(file))
    assert [(row["group"], row["n"]) for row in patients] == [("P0", "5"), ("P1", "4")]
    means = [float(patients[0][f"probability {c}"]) for c in model.classes]
    np.testing.assert_allclose(means, expected[:5].mean(axis=0), atol=1e-5)


@pytest.mark.full
def test_a_wrong_output_is_one_line(command, trained, tmp_path):
    arguments = [f"--workdir={trained}", "--input=synthetic:8", f"--out={tmp_path}/no/out.csv"]
    done = subprocess.run(**command("predict", *arguments), capture_output=True)
    assert done.returncode == 2
    assert done.stderr == f"error: --out={tmp_path}/no/out.csv: there is no folder {tmp_path}/no\n"


@pytest.mark.full
def test_explains_each_image_at_its_own_size(command, trained, tmp_path):
    cells = render.render_dataset(8, 40, seed=4).images[:3]
    shapes = [cells[0], cells[1][:, 5:], cells[2]]
    (tmp_path / "cells").mkdir()
    for i, cell in enumerate(shapes):
        png = images.encode_png(np.ascontiguousarray(cell))
        (tmp_path / f"cells/{i} x.png").write_bytes(png)
    arguments = [f"--workdir={trained}", f"--input={tmp_path / 'cells'}"]
    arguments += [f"--out={tmp_path / 'out.parquet'}", f"--explain={tmp_path / 'maps'}"]
    done = subprocess.run(**command("predict", *arguments), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert f"3 overlays and maps.npz in {tmp_path / 'maps'}\n" in done.stderr
    model = classifier.load(trained)
    maps, predicted = model.explain(shapes)
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table["name"].to_pylist() == ["0 x.png", "1 x.png", "2 x.png"]
    assert table["predicted"].to_pylist() == [model.classes[i] for i in predicted]
    with np.load(tmp_path / "maps/maps.npz", allow_pickle=False) as found:
        assert found["names"].tolist() == ["0 x.png", "1 x.png", "2 x.png"]
        assert found["files"].tolist() == ["0_x.png", "1_x.png", "2_x.png"]
        assert found["predicted"].tolist() == table["predicted"].to_pylist()
        for i, (cell, heat) in enumerate(zip(shapes, maps, strict=True)):
            assert found[f"maps_{i}"].shape == cell.shape[:2]
            np.testing.assert_allclose(found[f"maps_{i}"], heat, atol=1e-3)
            drawn = images.decode_whole((tmp_path / "maps" / found["files"][i]).read_bytes())[0]
            assert drawn.shape == cell.shape
