import json
import signal
import subprocess

import pytest

TINY = (
    *("--config=configs/quickstart.py", "--config.data.train=synthetic:160"),
    *("--config.data.image_size=32", "--config.batch_size=16"),
)


# Names that file systems allow and that are patterns, separators or lists elsewhere.
ODD = "run[1], a\\b ü嗜 *?"


@pytest.mark.full
def test_a_signal_ends_it_with_a_checkpoint(command, tmp_path):
    tmp_path /= ODD
    arguments = [*TINY, "--config.phases.finetune.epochs=500", f"--workdir={tmp_path}"]
    with subprocess.Popen(**command("main", *arguments), stderr=subprocess.PIPE) as process:
        before = []
        for line in process.stderr:
            before.append(line)
            if line.startswith("epoch 2 "):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
        assert process.wait() == 128 + signal.SIGTERM
    stated = next(i for i, line in enumerate(before) if line.startswith("data: "))
    assert before[stated].startswith("data: train, validation, test from synthetic:")
    assert before[stated + 1].startswith("8 classes by train/validation/test: basophil ")
    assert before[stated + 2].startswith("left out: ")
    assert rest.splitlines()[-1].startswith("stopped at step ")
    assert "Traceback" not in rest
    step = int(rest.splitlines()[-1].removeprefix("stopped at step ").partition(";")[0])
    assert (tmp_path / f"checkpoints/{step}").is_dir()


def test_a_wrong_key_is_one_line(command, tmp_path):
    done = subprocess.run(
        **command("main", *TINY, f"--workdir={tmp_path / 'run'}", "--config.seeed=1"),
        capture_output=True,
    )
    assert done.returncode == 2
    assert done.stderr == "error: unknown config key config.seeed; did you mean config.seed?\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_folds_are_trained_and_evaluated_as_one(command, tmp_path):
    tmp_path /= ODD
    changes = ("--config.folds=2", "--config.phases.finetune.epochs=1")
    done = subprocess.run(
        **command("main", *TINY, *changes, f"--workdir={tmp_path}"), capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert "fold 2 of 2" in done.stderr
    arguments = [f"--workdir={tmp_path}", "--data=synthetic:160", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(**command("evaluate", *arguments), capture_output=True)
    assert done.returncode == 0, done.stderr
    found, kept = (
        json.loads((tmp_path / folder / "metrics.json").read_text())
        for folder in ("out", "evaluate/test")
    )
    assert found["confusion_matrix"] == kept["confusion_matrix"]
    assert [member["workdir"] for member in found["members"]] == [
        str(tmp_path / f"fold{i}") for i in range(2)
    ]
