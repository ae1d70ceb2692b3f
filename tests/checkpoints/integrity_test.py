import pytest

from bloodjax.checkpoints import integrity


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
