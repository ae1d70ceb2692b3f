import json
import subprocess

import numpy as np

from bloodjax.data.synthetic import render


def test_compares_several_sources(command, tmp_path):
    first, _ = render.plant_flaws(render.render_dataset(80, 32), duplicates=2, conflicts=1)
    second = render.render_dataset(16, 32, seed=9)
    second.images[3] = first.images[0]
    paths = []
    for name, dataset in {"first": first, "second": second}.items():
        paths.append(tmp_path / f"{name}.npz")
        np.savez(paths[-1], images=dataset.images, labels=dataset.labels)
    arguments = [*(f"--data={path}" for path in paths), f"--out={tmp_path / 'audit'}"]
    done = subprocess.run(**command("audit", *arguments, "--image_size=32"), capture_output=True)
    assert done.returncode == 0, done.stderr
    audit = json.loads((tmp_path / "audit/audit.json").read_text())
    assert audit["n"] == 83 + 16
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"data: {paths[0]} (npz of images and labels; without names: ")
    assert lines[1].startswith(f"8 classes by {paths[0]}/{paths[1]}: basophil 1")
    assert lines[2] == "left out: nothing"
    assert len(audit["leakage"]) == 1
    assert f"{paths[1]}:3" in audit["leakage"][0]
    assert "99 images: 0 junk, " in done.stderr
    assert "1 leak; see" in done.stderr
    assert (tmp_path / "audit/index.html").exists()


def test_a_side_that_no_image_has_is_refused(command):
    done = subprocess.run(
        **command("audit", "--data=synthetic:16", "--image_size=0"), capture_output=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: flag --image_size=0: ")


def test_an_output_that_cannot_be_written_ends_it_before_the_data_are_read(command, tmp_path):
    (tmp_path / "audit").write_text("a file")
    arguments = [f"--data={tmp_path / 'missing.npz'}", f"--out={tmp_path / 'audit'}"]
    done = subprocess.run(**command("audit", *arguments), capture_output=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'audit'}: ")
    assert len(done.stderr.splitlines()) == 1
