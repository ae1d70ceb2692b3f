"""Runs on a workdir in a bucket, of one process and of two that share no folder.

They are compared with runs on a local disk, bit for bit. On emulators of S3 and GCS.
"""

import json
import pathlib
import shutil
import signal
import sys
import threading
import time

import jax
import numpy as np
import pytest

import bloodjax
from bloodjax import config as config_lib
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.errors import UserError
from bloodjax.evaluation import ensemble
from bloodjax.io import buckets, remote, staging
from bloodjax.training import factory, metric_writer
from bloodjax.training.remote_workdir import local_workdir
from bloodjax.training.workdir import open_run
from launch import local

from ..emulators import Proxy
from ..trees import assert_trees_equal
from .runtime_test import CONFIG, PATIENT, SGD, statuses

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def start_in(make_config, tmp_path_factory):
    """What starts the tiny run; each of its processes has a cache of its own."""
    file = tmp_path_factory.mktemp("config") / "config.py"
    file.write_text(CONFIG.format(config_lib.to_json(make_config(**SGD))))
    compiled = tmp_path_factory.mktemp("compiled")

    def started(workdir, caches, processes, devices, *flags):
        flags = [f"--config={file}", f"--workdir={workdir}", *flags]
        commands = local.commands(processes, devices, local.free_port(), flags, PATIENT)
        if processes == 1:
            commands = [(command[:-3], own) for command, own in commands]
        environ = {
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
            "PYTHONPATH": str(ROOT),
        }
        return local.Run(
            [
                (command, {**own, **environ, "BLOODJAX_CACHE": str(caches / str(number))})
                for number, (command, own) in enumerate(commands)
            ],
            60.0,
        )

    return started


@pytest.fixture(scope="module")
def on_disk(start_in, tmp_path_factory):
    """Returns the workdir of a finished run on a local disk, by processes, devices and flags."""
    finished = {}

    def get(processes, devices, *flags):
        key = (processes, devices, *flags)
        if key not in finished:
            folder = tmp_path_factory.mktemp("on_disk")
            run = start_in(folder / "run", folder, processes, devices, *flags)
            assert statuses(run) == [0] * processes
            finished[key] = folder / "run"
        return finished[key]

    return get


def wait_for(condition, run):
    """Returns when `condition()` is true, or the run has ended."""
    while not condition() and all(process.poll() is None for process in run.processes):
        time.sleep(0.02)


def objects(url, folder):
    return set(buckets.list_files(f"{url}/{folder}/"))


def harm(run, process, number, condition):
    """Sends a signal to a process once `condition()` is true."""

    def watch():
        wait_for(condition, run)
        run.processes[process].send_signal(number)

    threading.Thread(target=watch, daemon=True).start()


def variables(workdir):
    with open_run(workdir) as run:
        like = factory.shapes(run.config, len(run.progress.classes))
        step = run.checkpoints.latest_step
        return step, jax.device_get(run.checkpoints.restore_variables(step, like))


def assert_equal_runs(url, expected):
    """Both have the same weights, log, predictions and figures, bit for bit."""
    with staging.opened():
        found = staging.open_run(url)
        (step, weights), (other_step, other_weights) = variables(found), variables(expected)
        assert step == other_step == 21
        assert_trees_equal(weights, other_weights)
        logs = [metric_writer.read_history(folder) for folder in (found, expected)]
        for log in logs:
            for entry in log:
                del entry["seconds"], entry["train"]["images_per_second"]
        assert logs[0] == logs[1]
        for name in ("metrics.json", "predictions.csv"):
            for split in ("test", "validation"):
                one, two = (folder / "evaluate" / split / name for folder in (found, expected))
                assert one.read_bytes() == two.read_bytes()
        assert (found / "report" / "index.html").exists()
    assert buckets.stat(f"{url}/lock") is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_process_killed_in_an_upload_is_resumed(
    kind, start_in, on_disk, make_bucket, tmp_path, monkeypatch, capfd
):
    expected = on_disk(1, 1)
    bucket = make_bucket(kind)
    url = bucket / "runs/one"
    proxy = Proxy(bucket.endpoint)
    proxy.delay = 0.2
    variable = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}[kind]
    with monkeypatch.context() as slow:
        slow.setenv(variable, proxy.address)
        run = start_in(url, tmp_path, 1, 1)
    # Some objects of the second checkpoint are there, and its checksums are not.
    harm(run, 0, signal.SIGKILL, lambda: objects(url, "checkpoints/14"))
    assert statuses(run) == [-signal.SIGKILL]
    assert "checksums.json" in objects(url, "checkpoints/7")
    assert objects(url, "checkpoints/14")
    assert "checksums.json" not in objects(url, "checkpoints/14")
    assert buckets.stat(f"{url}/lock") is not None
    capfd.readouterr()
    assert statuses(start_in(url, tmp_path, 1, 1)) == [0]
    printed = capfd.readouterr().out
    assert f"the checkpoint {url}/checkpoints/14 is corrupt: checksums.json" in printed
    assert "resuming from step 7" in printed
    assert f"report: {url}/report/index.html" in printed
    assert_equal_runs(url, expected)
    proxy.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "killed", "flags"),
    [("s3", 1, ()), ("gs", 0, ()), ("s3", 0, ("--config.sharding=fsdp",))],
)
def test_two_processes_without_a_common_disk(
    kind, killed, flags, start_in, on_disk, make_bucket, tmp_path, capfd
):
    expected = on_disk(2, 1, *flags)
    url = make_bucket(kind) / "runs/two"
    run = start_in(url, tmp_path, 2, 1, *flags)
    harm(run, killed, signal.SIGKILL, lambda: "checksums.json" in objects(url, "checkpoints/7"))
    assert sorted(statuses(run)) == [-signal.SIGKILL, 75]
    # As on other machines, nothing is left of the folders of the processes.
    for number in range(2):
        shutil.rmtree(tmp_path / str(number))
    capfd.readouterr()
    assert statuses(start_in(url, tmp_path, 2, 1, *flags)) == [0, 0]
    assert "[0] resuming from step " in capfd.readouterr().out
    assert_equal_runs(url, expected)
    assert not list((tmp_path / "1").rglob("checksums.json"))


@pytest.mark.slow
def test_one_process_with_two_devices_gives_the_same(on_disk):
    two, one = on_disk(2, 1), on_disk(1, 2)
    assert_trees_equal(variables(two)[1], variables(one)[1])


@pytest.mark.slow
def test_a_second_run_is_refused_and_a_signal_frees_the_lock(
    start_in, make_bucket, tmp_path, capfd
):
    url = make_bucket("s3") / "runs/one"
    first = start_in(url, tmp_path / "a", 1, 1, "--config.phases.finetune.epochs=500")
    wait_for(lambda: "checksums.json" in objects(url, "checkpoints/7"), first)
    second = start_in(url, tmp_path / "b", 1, 1, "--config.phases.finetune.epochs=500")
    assert statuses(second) == [2]
    printed = capfd.readouterr().out
    holder = f"process {first.processes[0].pid} on "
    assert f"error: --workdir={url}: {holder}" in printed
    assert " is training here; expected one process at a time, or another --workdir" in printed
    first.processes[0].send_signal(signal.SIGTERM)
    assert statuses(first) == [143]
    assert buckets.stat(f"{url}/lock") is None
    step = max(int(name.split("/")[0]) for name in objects(url, "checkpoints"))
    assert "checksums.json" in objects(url, f"checkpoints/{step}")
    assert f"stopped at step {step}" in capfd.readouterr().out


POD = """
import sys
import jax, numpy as np
from bloodjax import distributed
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.checkpoints.state import Metrics, RunProgress, TrainState
from bloodjax.distributed import sharding
from bloodjax.training.remote_workdir import local_workdir

process, port, url, step = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
numbers = np.arange(4096, dtype=np.float32).reshape(64, 64)
numbers[0, :3] = -0.0, np.nan, np.inf
metrics = Metrics(*(np.float32(0),) * 3, np.int32(-1))
state = TrainState(np.int32(step), {"w": numbers, "b": numbers[:, 0]}, {}, {}, metrics)
progress = RunProgress(("a", "b"), phase=1, best=0.1, best_step=step)
with distributed.session(f"127.0.0.1:{port}", 2, process, 60.0), local_workdir(url) as folder:
    if distributed.is_primary():
        (folder / "splits.json").write_text(str(step))
    distributed.barrier()
    assert (folder / "splits.json").read_text() == str(step)
    layout = sharding.Layout(sharding.mesh(), "fsdp")
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        if step > 1:
            assert checkpoints.latest_step == step - 1
            old = checkpoints.restore(step - 1, like, layout)
            assert int(old.step) == step - 1
        checkpoints.save(sharding.put(state, layout.of(state)), progress)
        found = checkpoints.restore(step, like, layout)
        assert not found.params["w"].is_fully_addressable
        for shard in found.params["w"].addressable_shards:
            assert np.asarray(shard.data).tobytes() == numbers[shard.index].tobytes()
        assert np.asarray(found.params["b"]).tobytes() == state.params["b"].tobytes()
        alone = checkpoints.restore_variables(step, {"params": like.params})
        assert np.asarray(alone["params"]["w"]).tobytes() == numbers.tobytes()
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.progress()) == (step, progress)
        assert checkpoints.latest_before(step) == (step - 1 or None)
    assert (folder / "checkpoints").exists() == distributed.is_primary()
"""


@pytest.mark.full
def test_processes_without_a_common_disk_share_files_and_checkpoints(make_bucket, tmp_path, capfd):
    url = make_bucket("s3") / "runs/pod"
    for step in (1, 2):
        port = str(local.free_port())
        arguments = [sys.executable, "-c", POD]
        run = local.Run(
            [
                (
                    [*arguments, str(process), port, url, str(step)],
                    {
                        "BLOODJAX_CACHE": str(tmp_path / f"{step}{process}"),
                        "JAX_PLATFORMS": "cpu",
                        "XLA_FLAGS": "",
                        "PYTHONPATH": str(ROOT),
                    },
                )
                for process in range(2)
            ]
        )
        assert statuses(run) == [0, 0], capfd.readouterr().out
    assert buckets.stat(f"{url}/lock") is None
    assert {name.split("/")[0] for name in objects(url, "checkpoints")} == {"1", "2"}


SAVES = """
import sys
import numpy as np
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.checkpoints.state import Metrics, RunProgress, TrainState
from bloodjax.training.remote_workdir import local_workdir

with local_workdir(sys.argv[1]) as folder, Checkpoints(folder / "checkpoints") as checkpoints:
    for step in (1, 2):
        metrics = Metrics(*(np.float32(0),) * 3, np.int32(-1))
        state = TrainState(np.int32(step), {"w": np.full(9, step, "f")}, {}, {}, metrics)
        checkpoints.save(state, RunProgress(("a", "b"), phase_epochs=step))
"""


@pytest.mark.full
@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_half_of_an_upload_does_not_count(kind, make_bucket, tmp_path, monkeypatch, caplog):
    bucket = make_bucket(kind)
    url = bucket / "runs/killed"
    proxy = Proxy(bucket.endpoint)
    proxy.delay = 0.1
    variable = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}[kind]
    environ = {variable: proxy.address, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    run = local.Run([([sys.executable, "-c", SAVES, url], environ)])
    harm(run, 0, signal.SIGKILL, lambda: objects(url, "checkpoints/2"))
    assert statuses(run) == [-signal.SIGKILL]
    proxy.close()
    assert "checksums.json" in objects(url, "checkpoints/1")
    assert objects(url, "checkpoints/2")
    assert "checksums.json" not in objects(url, "checkpoints/2")
    assert buckets.stat(f"{url}/lock") is not None
    with (
        caplog.at_level("INFO", "bloodjax"),
        local_workdir(url) as folder,
        Checkpoints(folder / "checkpoints") as checkpoints,
    ):
        assert checkpoints.latest_step == 1
        assert checkpoints.progress().phase_epochs == 1
    assert f"the checkpoint {url}/checkpoints/2 is corrupt: checksums.json" in caplog.text
    assert "took over the lock of process " in caplog.text
    assert objects(url, "checkpoints/2") == set()
    assert buckets.stat(f"{url}/lock") is None


@pytest.mark.full
def test_a_run_in_a_bucket_is_read_by_commands(trained, bucket, capfd):
    url = bucket / "runs/trained"
    remote.upload(trained, url)
    expected = ensemble.load(trained)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    np.testing.assert_array_equal(bloodjax.load(url).predict(images), expected.predict(images))
    found = bloodjax.evaluate(url, "synthetic:160", split="test", out=bucket / "results/test")
    assert found["n"] == 24
    assert objects(bucket.url, "results/test") >= {"metrics.json", "predictions.csv"}
    stored = json.loads(buckets.read_bytes(bucket / "results/test/metrics.json"))
    assert stored["accuracy"] == found["accuracy"]
    before = set(buckets.list_files(f"{url}/"))
    assert bloodjax.evaluate(url, "synthetic:160", split="train")["n"] == 112
    new = set(buckets.list_files(f"{url}/")) - before
    assert new
    assert all(name.startswith("evaluate/") for name in new)
    # A damaged weight, a missing one and a missing config.
    step = max(int(name.split("/")[0]) for name in objects(url, "checkpoints"))
    (manifest,) = [n for n in objects(url, f"checkpoints/{step}") if n == "state/manifest.ocdbt"]
    buckets.write_bytes(f"{url}/checkpoints/{step}/{manifest}", b"damaged")
    bloodjax.load(url)
    remote.delete(f"{url}/config.json")
    with pytest.raises(UserError, match=r"no run is here"):
        bloodjax.load(url)
