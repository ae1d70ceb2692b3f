import pathlib
import subprocess
import sys

import pytest

from bloodjax import config as config_lib
from bloodjax.config import recipes
from bloodjax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["robust", "recipes/robust"])
def test_a_recipe_is_found_by_name_and_by_its_last_part(name):
    assert recipes.locate(name) == str(ROOT / "bloodjax/configs/recipes/robust.py")
    assert config_lib.get_config(name).ema == 0.999


def test_every_recipe_has_a_name_and_one_line():
    names = recipes.names()
    assert {"quickstart", "convnext_base", "recipes/clean"} <= set(names)
    assert not [name for name in names if "common" in name or "__" in name]
    assert all(recipes.summary(name).endswith(".") for name in names)
    assert len({name.rpartition("/")[2] for name in names}) == len(names)


def test_the_checkout_has_a_file_for_every_recipe():
    folder = ROOT / "configs"
    files = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.py")}
    assert files == {*recipes.names(), "common"}
    for name in recipes.names():
        here, packaged = (config_lib.get_config(n) for n in (str(folder / f"{name}.py"), name))
        assert here == packaged


def test_a_file_is_found_before_a_hint_and_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").touch()
    assert recipes.locate("~/mine.py") == str(tmp_path / "mine.py")
    assert recipes.locate(str(tmp_path / "mine.py")) == str(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quikstart", "no such recipe or file; did you mean --config=quickstart?"),
        ("recipes/robst", "no such recipe or file; did you mean --config=robust?"),
        ("zzz", "no such recipe or file; expected one of --config=cells_cpu, "),
        ("nope.py", r"no such file; expected a Python file with get_config\(\)$"),
        ("x/fast.py", r"with get_config\(\), or --config=recipes/fast for the recipe"),
    ],
)
def test_what_is_not_there_is_one_line_with_a_hint(name, message):
    with pytest.raises(UserError, match=f"^--config={name}: .*{message}"):
        recipes.locate(name)


def test_a_file_without_the_shared_settings_beside_it_is_told_where_they_are(tmp_path):
    (tmp_path / "mine.py").write_text("from configs import common\n")
    code = f"from bloodjax import config; config.get_config({str(tmp_path / 'mine.py')!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert "line 1: No module named 'configs'; expected `from bloodjax.configs" in done.stderr


@pytest.mark.parametrize(
    "line", ["from configs import common", "from bloodjax.configs import common"]
)
def test_a_file_of_the_user_builds_on_the_shared_settings(tmp_path, line):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/common.py").write_text((ROOT / "configs/common.py").read_text())
    mine = tmp_path / "configs/mine.py"
    mine.write_text(f"{line}\ndef get_config():\n    return common.from_scratch()\n")
    code = (
        f"from bloodjax import config; print(config.get_config({str(mine)!r}).model.weights == '')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
