import dataclasses
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from bloodjax import config as config_lib
from bloodjax import cross_validation, run
from bloodjax.cli import console
from bloodjax.errors import UserError
from bloodjax.io import processes
from bloodjax.training import factory, workdir
from bloodjax.training.metric_writer import read_history

from ..trees import assert_trees_equal

HOLDER = """
import pathlib, sys, time
from bloodjax.training import workdir
with workdir.lock_workdir(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        holder = f"process {process.pid} on {socket.gethostname()}"
        with pytest.raises(UserError, match=f"^--workdir={folder}: {holder} is training here"):
            workdir.lock_workdir(folder).__enter__()
        process.send_signal(signal.SIGKILL)
        process.wait()
    with workdir.lock_workdir(folder):
        assert (folder / "lock").read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(UserError, match=f"process {os.getpid()} on "):
            workdir.lock_workdir(folder).__enter__()
    assert (folder / "lock").read_text() == ""
    with workdir.lock_workdir(folder):
        pass


def test_a_folder_that_gets_nothing_is_removed(tmp_path):
    folder = tmp_path / "a" / "run"
    with workdir.lock_workdir(folder):
        assert (folder / "lock").exists()
    assert not folder.exists()
    with workdir.lock_workdir(folder):
        (folder / "config.json").write_text("{}")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "lock"]
    # The body may give it another name, as `bloodjax adapt` does.
    with workdir.lock_workdir(tmp_path / "temporary"):
        (tmp_path / "temporary").rename(tmp_path / "final")
    assert not (tmp_path / "temporary").exists()
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["lock"]
    # One that was there before stays, and so does its lock.
    empty = tmp_path / "empty"
    empty.mkdir()
    with workdir.lock_workdir(empty):
        pass
    assert [path.name for path in empty.iterdir()] == ["lock"]


def test_a_lock_on_a_file_that_was_removed_is_none(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    first = workdir.lock_workdir(folder)
    first.__enter__()
    (folder / "lock").write_text("process 7 on elsewhere\n")
    # It lets go, and removes file and folder, while the second waits with the file open.
    monkeypatch.setattr(workdir.time, "sleep", lambda _: first.__exit__(None, None, None))
    with workdir.lock_workdir(folder):
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* is training here"):
            workdir.lock_workdir(folder).__enter__()
        (folder / "config.json").write_text("{}")


@pytest.mark.parametrize("folder", ["checkpoints/7", "fold1/checkpoints/7"])
def test_checkpoints_without_a_config_are_refused(tmp_path, make_config, folder):
    (tmp_path / folder).mkdir(parents=True)
    message = rf"^--workdir=.*: has checkpoints in .*{folder[:-2]} but no config.json, expected"
    with pytest.raises(UserError, match=message):
        workdir.open_config(make_config(), tmp_path)


def test_one_on_another_machine_is_waited_for(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(console, "log_info", said.append)
    monkeypatch.setattr(workdir, "_PATIENCE", 0.02)
    with workdir.lock_workdir(tmp_path):
        (tmp_path / "lock").write_text("process 7 on elsewhere\n")
        with pytest.raises(UserError, match="process 7 on elsewhere is training here"):
            workdir.lock_workdir(tmp_path).__enter__()
    assert len(said) == 1
    assert "for process 7 on elsewhere to release it" in said[0]


def test_one_of_a_machine_of_this_name_that_is_gone_is_waited_for(tmp_path, monkeypatch):
    known = processes.identity(os.getpid())
    if known is None:
        pytest.skip("only Linux tells which processes are alive")
    first = workdir.lock_workdir(tmp_path)
    first.__enter__()
    line = f"process {os.getpid()} on {socket.gethostname()}"
    gone = json.dumps(["another boot", *known[1:]])
    (tmp_path / "lock").write_text(f"{line}\n{gone}\n")
    monkeypatch.setattr(workdir.time, "sleep", lambda _: first.__exit__(None, None, None))
    with workdir.lock_workdir(tmp_path):
        assert (tmp_path / "lock").read_text().splitlines() == [line, json.dumps(known)]


def test_one_that_lets_go_in_time_is_followed(tmp_path, monkeypatch):
    first = workdir.lock_workdir(tmp_path)
    first.__enter__()
    (tmp_path / "lock").write_text("process 7 on elsewhere\n")
    monkeypatch.setattr(workdir.time, "sleep", lambda _: first.__exit__(None, None, None))
    with workdir.lock_workdir(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    said = []
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(console, "log_info", said.append)
    with workdir.lock_workdir(tmp_path):
        pass
    assert said == [
        f"{tmp_path}/lock: Operation not supported; make sure that only one process trains here"
    ]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="/file/run: Not a directory"):
        workdir.lock_workdir(tmp_path / "file/run").__enter__()


def test_the_config_that_lives_there(tmp_path, make_config):
    config = make_config()
    assert workdir.open_config(config, tmp_path) is None
    (tmp_path / "config.json").write_text(config_lib.to_json(config))
    assert workdir.open_config(config, tmp_path) == config
    changed = make_config(grace_seconds=5.0)
    assert workdir.open_config(changed, tmp_path) == changed
    message = rf"--workdir={tmp_path}: contains a run with another config \(seed: 0 -> 1\)"
    with pytest.raises(UserError, match=message):
        workdir.open_config(make_config(seed=1), tmp_path)


def test_a_new_run_has_the_mean_of_images_in_0_to_1(tmp_path, make_config):
    imagenet = {"model.mean": (123.7, 116.3, 103.5), "model.std": (58.4, 57.1, 57.4)}
    with pytest.raises(UserError, match=r"config\.model\.mean is \(123\.7, .*, expected .* 0 to 1"):
        workdir.open_config(make_config(**imagenet), tmp_path)
    del imagenet["model.mean"]
    with pytest.raises(UserError, match=r"config\.model\.std is \(58\.4, "):
        workdir.open_config(make_config(**imagenet), tmp_path)
    # A run of an earlier version is resumed.
    (tmp_path / "config.json").write_text(config_lib.to_json(make_config(**imagenet)))
    assert workdir.open_config(make_config(**imagenet), tmp_path) is not None


def test_a_run_opened_for_reading(trained):
    with workdir.open_run(trained) as run:
        assert run.config == config_lib.load_json(trained / "config.json")
        best = min(read_history(trained), key=lambda entry: entry["validation"]["loss"])
        assert run.best_step == run.progress.best_step == best["step"]
        like = factory.shapes(run.config, len(run.progress.classes))
        found = run.best_variables(like, ema=False)
        assert_trees_equal(found, run.checkpoints.restore_variables(run.best_step, like))


def test_the_best_step_without_validation_is_the_latest(trained):
    with workdir.open_run(trained) as run:
        progress = dataclasses.replace(run.progress, best_step=None)
        assert dataclasses.replace(run, progress=progress).best_step == 21


def test_a_folder_without_a_run(tmp_path, make_config):
    with (
        pytest.raises(UserError, match=rf"^{tmp_path}: no run is here, expected .*config\.json$"),
        workdir.open_run(tmp_path),
    ):
        pass
    (tmp_path / "config.json").write_text(config_lib.to_json(make_config()))
    with (
        pytest.raises(UserError, match=f"^{tmp_path}: the run has no valid checkpoint yet$"),
        workdir.open_run(tmp_path),
    ):
        pass


def test_a_home_that_is_not_known_is_part_of_a_name(tmp_path, make_config):
    config = make_config(**{"data.train": "~nobody-of-this-name/cells"})
    workdir.check_apart(config, tmp_path / "run")  # reading it says that there is no such folder


@pytest.mark.parametrize("train", [run.train, cross_validation.train])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_folder_of_images_is_no_workdir(tmp_path, make_config, split, train):
    images = tmp_path / "images"
    (images / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(images)
    config = make_config(**{f"data.{split}": str(images)})
    for folder in (images, images / "runs" / "mine", tmp_path / "link" / "mine"):
        with pytest.raises(UserError) as error:
            train(config, folder)
        assert str(error.value) == (
            f"--workdir={folder}: is in the folder of config.data.{split}={images}, expected a "
            "folder elsewhere"
        )
    assert [path.name for path in images.iterdir()] == ["a"]
    workdir.check_apart(config, tmp_path / "images2")
    workdir.check_apart(config, tmp_path)
    # A run that is there already can go on.
    (images / "config.json").write_text("{}")
    workdir.check_apart(config, images)
