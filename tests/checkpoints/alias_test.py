import os

import pytest

from bloodjax.checkpoints import alias
from bloodjax.errors import UserError


def test_a_plain_path_is_its_own(tmp_path):
    with alias.plain_path(tmp_path / "lr=0.1,wd=0 ~a+b@c:d") as path:
        assert path == tmp_path / "lr=0.1,wd=0 ~a+b@c:d"


@pytest.mark.parametrize("name", ["run[1]", "x\\y", "**", "a?b", "größe", "{a}", "a\nb", "\udcff"])
def test_any_other_path_gets_a_link_for_a_while(tmp_path, name):
    folder = tmp_path / name
    with alias.plain_path(folder) as path:
        folder.mkdir()  # it need not exist before
        (path / "file").write_text("x")
        assert alias._PLAIN.fullmatch(str(path))
        assert os.listdir(folder) == ["file"]
    assert not path.parent.exists()
    assert os.listdir(folder) == ["file"]


def test_without_a_temporary_folder_that_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(alias.tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"run\[1\]: .*\(No such file or directory\); .*TMPDIR"):
        alias.plain_path(tmp_path / "run[1]").__enter__()
    (tmp_path / "[t]").mkdir()
    monkeypatch.setattr(alias.tempfile, "tempdir", str(tmp_path / "[t]"))
    with pytest.raises(UserError, match=r"TMPDIR=.*\[t\]"):
        alias.plain_path(tmp_path / "run[1]").__enter__()
