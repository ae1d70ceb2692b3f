import csv
import json
import shutil
import subprocess

import pytest

from bloodjax.evaluation import classifier


@pytest.mark.full
def test_scores_the_part_kept_back_for_testing(command, trained, tmp_path):
    arguments = [f"--workdir={trained}", "--data=synthetic:160", f"--out={tmp_path}", "--tta=d4"]
    done = subprocess.run(**command("evaluate", *arguments), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == f"written to {tmp_path}"
    result = json.loads((tmp_path / "metrics.json").read_text())
    kept_back = json.loads((trained / "splits.json").read_text())["parts"]["test"]
    assert (result["n"], result["tta"]) == (len(kept_back), "d4")
    assert f"test: accuracy {result['accuracy']:.4f}" in done.stderr
    assert "data: test from synthetic:160 (rendered cells)\n8 classes: basophil " in done.stderr
    assert "\nleft out: " in done.stderr
    with (tmp_path / "predictions.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == kept_back
    columns = ["name", "label", "predicted", "confidence", "refer", "why"]
    assert list(table[0]) == [*columns, *classifier.load(trained).classes]


@pytest.mark.full
def test_scores_distorted_images_too(command, trained, tmp_path):
    arguments = [f"--workdir={trained}", "--data=synthetic:160", f"--out={tmp_path}"]
    done = subprocess.run(
        **command("evaluate", *arguments, "--corruptions=dust,bubble:1"), capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == f"written to {tmp_path}"
    assert "balanced error: clean " in done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    result = json.loads((tmp_path / "corruptions.json").read_text())
    assert list(result["corruptions"]) == ["bubble", "dust"]
    assert result["n"] == metrics["n"]
    clean = 1 - metrics["balanced_accuracy"]
    assert abs(result["clean_balanced_error"] - clean) < 1e-9
    assert (tmp_path / "corruptions.html").exists()


@pytest.mark.full
def test_an_unknown_corruption_ends_before_anything_is_read(command, tmp_path):
    arguments = [f"--workdir={tmp_path / 'none'}", "--data=x.npz", "--corruptions=defocus"]
    done = subprocess.run(**command("evaluate", *arguments), capture_output=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: --corruptions holds the unknown distortion 'defocus'; did you mean defocus_blur?\n"
    )


@pytest.mark.full
def test_several_runs_are_an_ensemble_with_selected_views(command, trained, tmp_path):
    copies = [tmp_path / "a", tmp_path / "b"]
    for copy in copies:
        shutil.copytree(trained, copy)
    arguments = ["--data=synthetic:160", "--tta=flip", "--tta_select=greedy"]
    done = subprocess.run(
        **command("evaluate", f"--workdir={copies[0]}", *arguments), capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert (copies[0] / "tta.json").exists()
    result = json.loads((copies[0] / "evaluate/test/metrics.json").read_text())
    assert result["tta"] == "selected"
    both = [*(f"--workdir={run}" for run in (*copies, trained)), "--data=synthetic:160"]
    done = subprocess.run(**command("evaluate", *both), capture_output=True)
    assert done.returncode == 0, done.stderr
    out = copies[0] / "evaluate/test-ensemble"
    assert done.stderr.splitlines()[-1] == f"written to {out}"
    members = json.loads((out / "metrics.json").read_text())["members"]
    assert [member["workdir"] for member in members] == [*map(str, copies), str(trained)]
    for member in members:
        assert f"{member['workdir']} (simple_cnn): accuracy {member['accuracy']:.4f}" in done.stderr


@pytest.mark.full
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--tta=d6"],
            "error: --tta is 'd6', expected none, flip, d4, crops, colour, robust, zoom, d4_zoom, ",
        ),
        (["--tta=selected"], "error: tta is 'selected', but the run has no tta.json"),
        (["--tta_select=greedy"], "error: --tta is 'none', expected several views to select"),
    ],
)
def test_wrong_views_are_one_line(command, trained, tmp_path, arguments, message):
    flags = [f"--workdir={trained}", "--data=synthetic:160", f"--out={tmp_path}", *arguments]
    done = subprocess.run(**command("evaluate", *flags), capture_output=True)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "flag", ["split=all", "tta=d4", "tta_select=weights", "out=o", "corruptions=all", "images=i"]
)
def test_a_flag_on_data_needs_data(command, trained, tmp_path, flag):
    arguments = [f"--workdir={trained}", "--calibrate", f"--{flag}"]
    done = subprocess.run(**command("evaluate", *arguments), capture_output=True)
    assert done.returncode == 2
    name = flag.partition("=")[0]
    assert done.stderr == f"error: --{name} needs --data, which is missing\n"
