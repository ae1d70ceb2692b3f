import json

import pytest

from bloodjax.errors import UserError
from bloodjax.evaluation import results
from bloodjax.training import saved_splits


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes results on a source as an evaluation does; returns their folder in evaluate/."""
    monkeypatch.chdir(tmp_path)

    def write(spec, part=None, out=None):
        name = part or saved_splits.source_name(spec)
        of = results.of_run if name in saved_splits.SPLITS else results.of_data
        source = of(name, spec)
        folder = results.folder(out, tmp_path / "run/evaluate", name, source)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps({"source": source}))
        return folder.relative_to(tmp_path / ("run/evaluate" if out is None else ".")).as_posix()

    return write


def test_the_same_source_replaces_its_own_results(write, tmp_path):
    (tmp_path / "cells").mkdir()
    assert write("cells") == "cells"
    for spelling in ("cells", "cells/", "./cells", f"{tmp_path}/cells", "run/../cells"):
        assert write(spelling) == "cells"
    assert write("cells", "cells-train") == "cells-train"
    assert write("synthetic:9") == write("synthetic:9") == "synthetic-9"


def test_sources_of_one_name_have_results_each(write, tmp_path):
    for lab in "abc":
        (tmp_path / lab / "cells").mkdir(parents=True)
    assert [write(f"{lab}/cells") for lab in "abcba"] == [
        *("cells", "cells-2", "cells-3", "cells-2", "cells")
    ]
    (tmp_path / "cells.zip").touch()
    assert write("cells.zip") == "cells-4"


def test_the_runs_own_results_are_not_those_of_a_file_of_that_name(write, tmp_path):
    assert write("synthetic:9", "test") == "test"
    own = ("test.zip", "Test.npz", "validation", "train", "out_of_fold", "test_distorted")
    for name in (*own, "test-ensemble"):
        (tmp_path / name).touch()
        assert write(name) == f"{name.partition('.')[0]}-data"
    assert write("training_set.npz") == "training_set"
    assert write("synthetic:9", "test") == "test"  # evaluated again


def test_results_that_name_no_source_are_only_replaced_by_the_runs_own(write, tmp_path):
    for name in ("test", "cells"):  # of a run of an older version
        (tmp_path / "run/evaluate" / name).mkdir(parents=True)
        (tmp_path / "run/evaluate" / name / "metrics.json").write_text('{"n": 3}')
    (tmp_path / "cells").mkdir()
    assert write("synthetic:9", "test") == "test"
    assert write("cells") == "cells-2"
    for damaged in ("", "[]", "{"):
        (tmp_path / "run/evaluate/cells-2/metrics.json").write_text(damaged)
        assert write("cells") == "cells-3"


def test_nothing_is_written_outside_evaluate(write, tmp_path, monkeypatch):
    (tmp_path / "lab/cells/monocyte").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "lab/cells")
    assert write(".") == "cells"
    monkeypatch.chdir(tmp_path / "lab/cells/monocyte")
    assert write("..") == "cells"
    assert write("../..") == "lab"
    assert write("/") == "data"


def test_out_that_is_a_file_is_refused(write, tmp_path):
    (tmp_path / "results").touch()
    with pytest.raises(UserError, match=r"results: is not a folder"):
        write("a", out=tmp_path / "results")


def test_out_with_the_results_of_another_source_is_refused(write, tmp_path):
    for lab in "ab":
        (tmp_path / lab).mkdir()
    out = tmp_path / "results"
    assert write("a", out=out) == write("a/", out=out) == "results"
    with pytest.raises(UserError, match=r"results: contains the results of other images"):
        write("b", out=out)
    (out / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match=r"results: contains the results of other images"):
        write("a", out=out)


def test_other_runs_do_not_replace_results(tmp_path):
    plain = results.of_data("cells", "synthetic:9")
    parent = tmp_path / "run/evaluate"

    def put(source, out=None):
        folder = results.folder(out, parent, "cells-ensemble", source)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps({"source": source}))
        return folder.name

    ab, ac = (results.by_runs(plain, [tmp_path / "a", tmp_path / name]) for name in "bc")
    assert [put(ab), put(ac), put(ab)] == ["cells-ensemble", "cells-ensemble-2", "cells-ensemble"]
    out = tmp_path / "out"
    assert put(results.by_runs(plain, [tmp_path / "a"]), out) == "out"
    with pytest.raises(UserError, match="of other images or of other runs; expected a new folder"):
        put(results.by_runs(plain, [tmp_path / "b"]), out)
    (out / "metrics.json").write_text(json.dumps({"source": plain}))  # of an earlier version
    assert put(results.by_runs(plain, [tmp_path / "b"]), out) == "out"


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("set.v1", "set.v1"),
        ("set.v1.zip", "set.v1"),
        ("größe 1.ZIP", "größe-1"),
        ("tfds:blood_cells:1.0.0", "tfds-blood_cells-1.0.0"),
        ("🩸", "data"),
        ("a/-.x.-", "x"),
        ("é" * 200, "é" * 60),
    ],
)
def test_a_source_gives_a_folder_its_name(spec, name):
    assert saved_splits.source_name(spec) == name
