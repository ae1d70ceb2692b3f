import json
import subprocess

import numpy as np
from PIL import Image

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


def test_files_of_two_sources_are_compared_on_one_scale(command, tmp_path):
    """The same 16-bit files are exact duplicates, however bright the rest of their source is."""
    rng = np.random.default_rng(0)
    for source, brightest in (("first", 4000), ("second", 60000)):
        for name in "ab":
            (tmp_path / source / name).mkdir(parents=True)
            pixels = np.random.default_rng(ord(name)).integers(0, 1000, (32, 32)).astype(np.uint16)
            Image.fromarray(pixels).save(tmp_path / source / name / "0.png")
            own = rng.integers(0, brightest, (32, 32)).astype(np.uint16)
            Image.fromarray(own).save(tmp_path / source / name / "1.png")
    flags = [f"--data={tmp_path / 'first'}", f"--data={tmp_path / 'second'}"]
    flags += [f"--out={tmp_path / 'audit'}", "--image_size=32"]
    done = subprocess.run(**command("audit", *flags), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "2 groups of exact and 0 of near duplicates" in done.stderr


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
