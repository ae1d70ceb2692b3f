"""The command `sweep`, and sweeps that train."""

import json
import signal
import subprocess
import sys

import pytest

import bloodjax
from bloodjax import config as config_lib
from bloodjax import run
from bloodjax.tuning import log_uniform

pytest.importorskip("optuna", reason="needs the extra [sweep]")

from bloodjax.errors import UserError
from bloodjax.tuning import final_test, outcome
from bloodjax.tuning.study import COMPLETE, RUNNING, Study
from bloodjax.tuning.sweep import Options, Sweep

from .training.runs import history

RATE = "phases.finetune.learning_rate"
SPACE = {RATE: log_uniform(1e-4, 1e-2)}
TINY = {
    "data.train": "synthetic:160",
    "data.image_size": 32,
    "batch_size": 16,
    "phases.finetune.epochs": 3,
    "early_stopping.metric": "loss",
    "evaluation.bootstrap": 20,
}


@pytest.mark.slow
def test_a_trial_is_the_run_that_its_config_trains(tmp_path, make_config, monkeypatch):
    seen = []
    finish = final_test.evaluator.finish
    monkeypatch.setattr(
        final_test.evaluator, "finish", lambda *a: seen.append(a[1].name) or finish(*a)
    )
    config = make_config(**{"phases.head.epochs": 0, "early_stopping.metric": "loss"})
    url = f"journal:///{tmp_path / 'sweep.log'}"
    sweep = Sweep(config, SPACE, tmp_path / "sweep", Options(url, 2))
    sweep.work(run.fit)
    sweep.finish()
    assert seen == []  # no trial is evaluated on test
    best = sweep.study.best()
    text = (tmp_path / "sweep" / "best.py").read_text()
    assert f"trial {best.number}, validation loss {best.value:.4f}" in text
    loaded = config_lib.load(str(tmp_path / "sweep" / "best.py"))
    assert loaded == sweep.trial_config(best.values)
    run.train(loaded, tmp_path / "best")
    trial = sweep.folder(best.number)
    assert history(trial) == history(tmp_path / "best")

    entry = final_test.evaluate(sweep)
    assert final_test.evaluate(sweep) == entry  # and is not evaluated again
    assert seen[1:] == [f"{best.number:05}", *(["00000"] if best.number else [])]
    metrics = json.loads((tmp_path / "best" / "evaluate" / "test" / "metrics.json").read_text())
    assert entry["best"]["accuracy"] == metrics["accuracy"]
    assert bloodjax.load(trial).classes == bloodjax.load(tmp_path / "best").classes
    assert (trial / "report" / "index.html").exists()
    page = (tmp_path / "sweep" / "report" / "index.html").read_text()
    assert f"{100 * metrics['accuracy']:.1f}" in page
    assert "No trial has seen a test image" not in page
    study = sweep.study
    study.ask()
    with pytest.raises(UserError, match="1 trial has not ended; expected --test after the sweep"):
        final_test.evaluate(sweep)


@pytest.fixture
def start(tmp_path, command):
    """Starts the command with a tiny config; the folder's name is the sweep's."""

    def process(name, *flags):
        space = tmp_path / "space.py"
        space.write_text(
            "from bloodjax.tuning import log_uniform\n\n\ndef get_space():\n"
            f"    return {{{RATE!r}: log_uniform(1e-4, 1e-2)}}\n"
        )
        overrides = [f"--config.{key}={value}" for key, value in TINY.items()]
        arguments = ["--config=quickstart", f"--space={space}", f"--workdir={tmp_path / name}"]
        return subprocess.Popen(
            **command("sweep", *arguments, *overrides, *flags),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return process


def until(process, text):
    """Reads the process's messages up to a line with `text`."""
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"it ended with {process.wait()} and without {text!r}")


def table(folder):
    study = Study(f"sqlite:///{folder / 'sweep.db'}", "sweep-1", SPACE, larger_is_better=False)
    return [(t.number, t.state, t.value, t.values, t.epochs) for t in study.trials()]


@pytest.mark.slow
def test_killed_and_stopped_it_ends_as_a_sweep_left_alone(start, tmp_path):
    alone = start("alone", "--trials=4")
    killed = start("killed", "--trials=4")
    until(killed, "trial 1 ")
    until(killed, "epoch 2 ")
    killed.kill()
    killed.communicate()
    killed = start("killed", "--trials=4")
    until(killed, "trial 1: its worker is gone; trying again")
    until(killed, "trial 2 ")
    until(killed, "epoch 1 ")
    killed.send_signal(signal.SIGINT)
    err = killed.communicate()[1]
    assert killed.returncode == 130, err
    assert "Traceback" not in err
    assert [row[1] for row in table(tmp_path / "killed")] == [COMPLETE, COMPLETE, RUNNING]
    killed = start("killed", "--trials=4", "--test")
    err = killed.communicate()[1]
    assert killed.returncode == 0, err
    assert alone.wait() == 0
    assert table(tmp_path / "killed") == table(tmp_path / "alone")
    best = [(tmp_path / name / "best.py").read_text() for name in ("killed", "alone")]
    assert best[0] == best[1]
    (entry,) = outcome.read_tests(tmp_path / "killed")
    assert entry["best"]["n"] == 24
    assert not (tmp_path / "alone" / "test.json").exists()


@pytest.mark.slow
def test_workers_share_the_trials(start, tmp_path):
    process = start("both", "--trials=5", "--workers=2")
    err = process.communicate()[1]
    assert process.returncode == 0, err
    assert [row[0] for row in table(tmp_path / "both")] == list(range(5))
    assert {row[1] for row in table(tmp_path / "both")} <= {COMPLETE, "pruned"}
    log = (tmp_path / "both" / "worker1.log").read_text()
    of_first = {line.split()[1] for line in err.splitlines() if line.startswith("trial ")}
    of_second = {line.split()[1] for line in log.splitlines() if line.startswith("trial ")}
    assert of_first
    assert of_second


@pytest.mark.full
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trials=2"], "error: --storage or --workdir is missing; --help says what they are\n"),
        (["--trials=0", "--workdir=w"], "error: flag --trials=0"),
        (["--workdir=w"], "error: --trials is missing; --help says what it is\n"),
        (
            ["--trials=2", "--storage=postgresql://me:secret@host/name"],
            "error: --workdir is missing: --storage=postgresql://me:***@host/name has no folder",
        ),
        (
            ["--trials=2", "--workdir=gs://b/w"],
            "error: --workdir=gs://b/w: the workers of a ",
        ),
        (["--trials=2", "--workdir=w", "--space=no.py"], "error: --space=no.py: no such file; "),
        (
            ["--trials=2", "--workdir=w", "--config.data.train=."],
            "error: --workdir=w: is in the folder of config.data.train=., expected",
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path, flags, message):
    done = subprocess.run(
        [sys.executable, "-m", "bloodjax.sweep", "--config=quickstart", *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_without_optuna_it_says_what_to_install(tmp_path):
    code = (
        "import importlib.util, runpy, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, *a: None if n == 'optuna' else find(n, *a)\n"
        "sys.argv = ['sweep', '--config=quickstart', '--trials=2', '--workdir=w']\n"
        "runpy.run_module('bloodjax.sweep', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: sweep needs optuna, expected the extra [sweep]: pip install 'bloodjax[sweep]'\n"
    )
