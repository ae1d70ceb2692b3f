import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bloodjax.checkpoints import integrity
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.checkpoints.state import RunProgress, TrainState
from bloodjax.cli import console
from bloodjax.errors import UserError

from ..trees import assert_trees_equal

MUTATIONS = 240


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep/deeper").mkdir(parents=True)
    (tmp_path / "deep/deeper/large").write_bytes(bytes(range(256)) * 5)
    (tmp_path / "small").write_bytes(b"x")
    (tmp_path / "empty").write_bytes(b"")
    integrity.write(tmp_path)
    return tmp_path


def test_a_whole_folder(folder):
    integrity.check(folder)
    (folder / "further").write_text("does not count")
    integrity.check(folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        *("checksums.json", "deep", "empty", "further", "small")
    ]


def flip(path):
    path.write_bytes(bytes([path.read_bytes()[0] ^ 128]) + path.read_bytes()[1:])


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("deep/deeper/large", flip, "deep/deeper/large has other bytes than were written"),
        ("deep/deeper/large", cut, "deep/deeper/large has 1,279 bytes, expected 1,280"),
        ("deep/deeper/large", remove, "deep/deeper/large is missing"),
        ("small", lengthen, "small has 2 bytes, expected 1"),
        ("small", cut, "small has 0 bytes, expected 1"),
        ("empty", remove, "empty is missing"),
        ("empty", lengthen, "empty has 1 bytes, expected 0"),
        *(
            ("checksums.json", how, "checksums.json has other bytes than were written")
            for how in (flip, cut, lengthen)
        ),
        ("checksums.json", remove, "checksums.json, which is written last, is missing"),
    ],
)
def test_a_broken_folder_is_named(name, how, message, folder):
    how(folder / name)
    with pytest.raises(integrity.CorruptionError) as broken:
        integrity.check(folder)
    assert str(broken.value) == message


def test_a_folder_in_place_of_a_file(folder):
    (folder / "small").unlink()
    (folder / "small").mkdir()
    with pytest.raises(integrity.CorruptionError, match=r"^small "):
        integrity.check(folder)


def state_at(step):
    rng = np.random.default_rng(step)
    kernel = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    mean = jnp.asarray(rng.normal(size=4), jnp.float32)
    variables = {"params": {"dense": {"kernel": kernel}}, "batch_stats": {"mean": mean}}
    return TrainState.create(variables, optax.adamw(1e-3)).replace(step=jnp.int32(step))


def progress_at(step):
    return RunProgress(("a",), phase_epochs=step, best=0.5, best_step=step)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder with checkpoints of the steps 1 and 2. Tests must not change it."""
    folder = tmp_path_factory.mktemp("stored")
    with Checkpoints(folder) as written:
        for step in (1, 2):
            written.save(state_at(step), progress_at(step))
    return folder


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(console, "log_info", lines.append)
    return lines


def mutate(path, how, rng):
    content = bytearray(path.read_bytes())
    if how == "delete" or not content:
        path.unlink()
    elif how == "truncate":
        path.write_bytes(content[: rng.randrange(len(content))])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)


def test_whatever_breaks_in_the_newest_checkpoint_is_survived(checkpoints, tmp_path, said):
    """Each file is flipped, truncated and deleted, and then files at random."""
    names = sorted(p.relative_to(checkpoints) for p in (checkpoints / "2").rglob("*"))
    names = [name for name in names if (checkpoints / name).is_file()]
    rng = random.Random(0)
    each = [(name, how) for name in names for how in ("flip", "truncate", "delete")]
    drawn = [(rng.choice(names), rng.choice(["flip", "truncate"])) for _ in range(MUTATIONS)]
    expected = {step: jax.device_get(state_at(step)) for step in (1, 2)}
    like = jax.eval_shape(lambda: state_at(0))
    found = {1: 0, 2: 0}
    for number, (name, how) in enumerate((each + drawn)[:MUTATIONS]):
        folder = shutil.copytree(checkpoints, tmp_path / "copy")
        mutate(folder / name, how, rng)
        said.clear()
        with Checkpoints(folder) as opened:
            step = opened.latest_step
            assert opened.progress() == progress_at(step), (name, how)
            if step == 2 or number % 10 == 0:  # step 1 is the same every time
                state = jax.device_get(opened.restore(step, like))
                assert_trees_equal(state, expected[step])
        assert (folder / "2").exists() == (step == 2)
        if step == 1:
            assert len(said) == 1
            assert said[0].startswith(f"the checkpoint {folder}/2 is corrupt: ")
            assert name.relative_to("2").as_posix() in said[0]
        found[step] += 1
        shutil.rmtree(folder)
    assert sum(found.values()) >= 200
    assert found[1] == MUTATIONS, "nothing in the folder is without a checksum"


def test_the_newest_whole_step(checkpoints, said):
    found = integrity.CheckpointStore(checkpoints, read_only=True)
    assert found.latest() == 2
    assert found.latest(before=2) == 1
    assert found.latest(before=1) is None
    assert [found.is_valid(step) for step in (1, 2, 3)] == [True, True, False]
    assert found.progress(2) == json.loads(json.dumps(vars(progress_at(2))))
    assert integrity.CheckpointStore(checkpoints / "nowhere", read_only=False).latest() is None
    assert said == []


def test_a_step_that_was_whole_and_is_gone(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints, tmp_path / "copy")
    found = integrity.CheckpointStore(folder, read_only=False)
    found.written(3)
    assert not found.is_valid(3), "it is only being written"
    assert found.is_valid(2)
    shutil.rmtree(folder / "2")
    assert not found.is_valid(2)


def test_a_checkpoint_from_before_there_were_checksums(checkpoints, tmp_path, said):
    folder = shutil.copytree(checkpoints, tmp_path / "copy")
    file = folder / "2/progress/metadata"
    content = json.loads(file.read_text())
    del content["format"]
    file.write_text(json.dumps(content))
    (folder / "2" / integrity.FILE).unlink()
    assert integrity.CheckpointStore(folder, read_only=True).latest() == 2
    shutil.rmtree(folder / "2/state")
    assert integrity.CheckpointStore(folder, read_only=True).latest() == 1
    file.write_text("[")
    assert integrity.CheckpointStore(folder, read_only=True).latest() == 1
    assert [line.rpartition(": ")[2] for line in said] == [
        "checksums.json, which is written last, is missing",
        "its progress cannot be read",
    ]


def test_what_this_user_may_not_read(checkpoints, tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder / "state/manifest.ocdbt"))

    folder = shutil.copytree(checkpoints, tmp_path / "copy")
    monkeypatch.setattr(integrity, "check", refuse)
    with pytest.raises(UserError, match=r"copy/2/state/manifest\.ocdbt: Permission denied"):
        integrity.CheckpointStore(folder, read_only=False).latest()
    assert (folder / "2").is_dir()
