import csv
import json
import os
import shutil
import signal

import numpy as np
import pytest

import bloodjax
from bloodjax import config as config_lib
from bloodjax import cross_validation
from bloodjax.data import splits
from bloodjax.data.synthetic import render
from bloodjax.errors import Stopped, UserError
from bloodjax.evaluation import classifier, ensemble, label_review
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.training.executor import JitExecutor

K = 3
CHANGES = {"folds": K, "phases.head.epochs": 0, "phases.finetune.epochs": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """160 cells, of which some pairs are the same image and some are of one patient."""
    path = tmp_path_factory.mktemp("cells") / "cells.npz"
    cells = render.render_dataset(160, 32, seed=0)
    images = cells.images.copy()
    same = [np.flatnonzero(cells.labels == label)[:2] for label in range(8)]
    for first, second in same:
        images[second] = images[first]
    np.savez(path, images=images, labels=cells.labels, classes=np.array(cells.classes))
    return path, same


@pytest.fixture(scope="module")
def run(make_config, source, tmp_path_factory):
    """A finished run of three folds, which was stopped within the second."""
    workdir = tmp_path_factory.mktemp("folds") / "run"
    config = make_config(**CHANGES, **{"data.train": str(source[0])})
    taken, original = [], JitExecutor.train

    def counted(self, *arguments):
        taken.append(1)
        if len(taken) == 8:  # an epoch has 5 or so steps
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JitExecutor, "train", counted)
        with pytest.raises(Stopped):
            cross_validation.train(config, workdir)
    finished = workdir / "fold0/report/index.html"
    assert finished.exists()
    assert not (workdir / "fold1/report").exists()
    written = finished.stat().st_mtime_ns
    results = cross_validation.train(config, workdir)
    assert finished.stat().st_mtime_ns == written, "a finished fold was run again"
    return workdir, results


def parts_of(folder):
    return {
        name: set(found) for name, found in splits.load(folder / "splits.json")["parts"].items()
    }


@pytest.mark.slow
def test_each_picture_validates_once_and_the_test_part_is_kept_back_from_all(run):
    workdir, _ = run
    whole = parts_of(workdir)
    assert whole.keys() == {"train", "test"}
    held_out = []
    for i in range(K):
        own = parts_of(workdir / f"fold{i}")
        assert own["test"] == whole["test"]
        assert own["train"] | own["validation"] == whole["train"]
        assert not own["train"] & own["validation"]
        held_out.append(own["validation"])
    assert set.union(*held_out) == whole["train"]
    assert sum(map(len, held_out)) == len(whole["train"])
    assert max(map(len, held_out)) - min(map(len, held_out)) <= 8


@pytest.mark.full
def test_folds_are_stratified_and_keep_duplicates_together(run, source):
    workdir, _ = run
    labels = np.load(source[0])["labels"]
    total = np.bincount(labels[[int(n) for n in parts_of(workdir)["train"]]])
    for i in range(K):
        held_out = {int(name) for name in parts_of(workdir / f"fold{i}")["validation"]}
        counts = np.bincount(labels[list(held_out)], minlength=8)
        assert np.abs(counts - total / K).max() <= 2
        assert all((first in held_out) == (second in held_out) for first, second in source[1])


@pytest.mark.full
def test_every_picture_is_judged_by_the_run_that_did_not_see_it(run, source):
    workdir, results = run
    with (workdir / "evaluate/out_of_fold/predictions.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows.keys() == parts_of(workdir)["train"]
    images = np.load(source[0])["images"]
    for i in range(K):
        member = classifier.load(workdir / f"fold{i}")
        names = sorted(parts_of(workdir / f"fold{i}")["validation"])
        expected = member.predict(images[[int(name) for name in names]])
        found = [[float(rows[name][c]) for c in member.classes] for name in names]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    result = json.loads((workdir / "evaluate/out_of_fold/metrics.json").read_text())
    assert result == results["out_of_fold"]
    right = np.mean([row["label"] == row["predicted"] for row in rows.values()])
    assert result["accuracy"] == pytest.approx(right)
    assert sum(fold["n"] for fold in result["folds"]) == result["n"] == len(rows)
    assert 0 <= result["baseline"]["accuracy"] <= 1


@pytest.mark.full
def test_the_ensemble_of_the_folds_is_evaluated_on_test(run, source):
    workdir, results = run
    model = bloodjax.load(workdir)
    assert isinstance(model, Ensemble)
    assert [folder.name for folder in model.members] == ["fold0", "fold1", "fold2"]
    result = json.loads((workdir / "evaluate/test/metrics.json").read_text())
    assert result == results["test"]
    names = splits.load(workdir / "splits.json")["parts"]["test"]
    content = np.load(source[0])
    index = [int(name) for name in names]
    probabilities = model.predict(content["images"][index])
    right = np.mean(probabilities.argmax(axis=1) == content["labels"][index])
    assert result["accuracy"] == pytest.approx(right)
    assert len(result["members"]) == K
    page = (workdir / "report/index.html").read_text(encoding="utf-8")
    assert all(text in page for text in ("fold2", "Out of fold", "Members of the ensemble"))


@pytest.mark.full
def test_labels_are_judged_by_the_run_that_did_not_see_them(run):
    workdir, _ = run
    with (workdir / "label_review.csv").open() as file:
        rows = list(csv.DictReader(file))
    by = {"train": label_review.BY_FOLDS, "test": label_review.BY_NETWORK}
    assert all(row["judged_by"] == by[row["split"]] for row in rows)
    page = (workdir / "report/index.html").read_text(encoding="utf-8")
    assert label_review.BY_FOLDS in page


@pytest.mark.full
def test_another_config_is_refused(run, make_config, source):
    config = make_config(**CHANGES | {"folds": 4}, **{"data.train": str(source[0])})
    with pytest.raises(UserError, match="folds: 3 -> 4"):
        cross_validation.train(config, run[0])


def test_a_class_that_cannot_be_shared_out(make_config, tmp_path):
    cells = render.render_dataset(64, 32, seed=0)
    images = cells.images.copy()
    of_class = np.flatnonzero(cells.labels == 2)
    images[of_class] = images[of_class[0]]
    path = tmp_path / "cells.npz"
    np.savez(path, images=images, labels=cells.labels, classes=np.array(cells.classes))
    config = make_config(
        **CHANGES, **{"data.train": str(path), "data.clean": "report", "data.test": "0"}
    )
    with pytest.raises(UserError, match=rf"config.folds is 3, but the class {cells.classes[2]} of"):
        cross_validation.train(config, tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()


def test_validation_of_its_own_does_not_go_with_folds(make_config):
    with pytest.raises(UserError, match=r"config.data.validation is 'b.npz', expected auto"):
        make_config(folds=2, **{"data.validation": "b.npz"})
    assert make_config(folds=2, **{"data.validation": "0"}).folds == 2
    assert config_lib.defaults().folds == 0


LOGO = "leave-one-group-out"


def grouped_cells(path, groups, n=64):
    """Cells of the first two kinds with the group of each."""
    drawn = render.render_dataset(8 * n, 32, seed=0)
    cells = drawn.take(drawn.labels < 2).take(np.arange(n))
    keys = [groups[i % len(groups)] for i in range(n)]
    images = cells.images.copy()
    classes = np.array(cells.classes[:2])
    np.savez(path, images=images, labels=cells.labels, classes=classes, groups=np.array(keys))
    return str(path)


def draw_folds(make_config, tmp_path, file, **changes):
    config = make_config(**{"folds": LOGO, "data.train": file, "data.test": "0", **changes})
    (tmp_path / "run").mkdir(exist_ok=True)
    cross_validation._draw_folds(config, tmp_path / "run")
    (tmp_path / "run/config.json").write_text(config_lib.to_json(config))
    return tmp_path / "run"


def test_a_fold_for_each_group(make_config, tmp_path):
    names = ["P10", "P2", "P1"]
    file = grouped_cells(tmp_path / "cells.npz", names)
    (tmp_path / "run/fold3").mkdir(parents=True)
    (tmp_path / "run/fold3/config.json").write_text("left by a draw of more folds")
    workdir = draw_folds(make_config, tmp_path, file)
    folders = ensemble.fold_folders(workdir)
    assert [folder.name for folder in folders] == ["fold0", "fold1", "fold2"]
    keys = np.load(file)["groups"]
    for folder, name in zip(folders, ["P1", "P10", "P2"], strict=True):
        parts = parts_of(folder)
        assert {keys[int(i)] for i in parts["validation"]} == {name}
        assert {keys[int(i)] for i in parts["train"]} == set(names) - {name}
        saved = splits.load(folder / "splits.json")["groups"]
        assert saved["validation"] == splits.hash_groups([name])
        assert saved["train"] == splits.hash_groups([*{*names} - {name}])
        assert config_lib.load_json(folder / "config.json").folds == 0
    assert splits.load(workdir / "splits.json")["groups"] == {"train": splits.hash_groups(names)}


def test_no_group_is_in_two_folds(make_config, tmp_path):
    file = grouped_cells(tmp_path / "cells.npz", [f"P{i}" for i in range(9)])
    workdir = draw_folds(make_config, tmp_path, file, folds=3)
    keys = np.load(file)["groups"]
    held_out = [
        {keys[int(i)] for i in parts_of(folder)["validation"]}
        for folder in ensemble.fold_folders(workdir)
    ]
    assert sum(map(len, held_out)) == len(set.union(*held_out)) == 9


def test_groups_that_share_an_image_are_left_out_together(make_config, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(cross_validation.console, "log_info", said.append)
    file = tmp_path / "cells.npz"
    grouped_cells(file, ["P1", "P2", "P3", "P4"])
    content = dict(np.load(file))
    content["images"][4] = content["images"][2]  # of P1, and of P3
    content["labels"][4] = content["labels"][2]
    np.savez(file, **content)
    workdir = draw_folds(make_config, tmp_path, str(file))
    held_out = [
        {content["groups"][int(i)] for i in parts_of(folder)["validation"]}
        for folder in ensemble.fold_folders(workdir)
    ]
    assert held_out == [{"P1", "P3"}, {"P2"}, {"P4"}]
    assert "leave-one-group-out: 3 folds" in said
    assert "the groups P1, P3 share images, and are left out together" in said


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            ["P1", "P2", ""],
            r"but 21 images of .*cells.npz \(first [0-9]+\) have no group; expected a",
        ),
        (["P1"], r"but all images of .*cells.npz are of one group; expected at least two"),
    ],
)
def test_groups_that_cannot_be_left_out(make_config, tmp_path, groups, message):
    file = grouped_cells(tmp_path / "cells.npz", groups)
    with pytest.raises(UserError, match=r"config.folds is leave-one-group-out, " + message):
        draw_folds(make_config, tmp_path, file)
    assert not (tmp_path / "run/fold0").exists()


def test_missing_weights_are_known_before_anything_is_written(make_config, tmp_path):
    config = make_config(**CHANGES, **{"model.weights": str(tmp_path / "w.pth")})
    with pytest.raises(UserError, match=r"w\.pth': no such file"):
        cross_validation.train(config, tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()
    assert not (tmp_path / "run/splits.json").exists()


@pytest.mark.full
def test_a_finished_fold_learns_where_the_images_are_now(run, source, make_config, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    moved = shutil.copy(source[0], tmp_path / "moved.npz")
    cross_validation.train(make_config(**CHANGES, **{"data.train": str(moved)}), workdir)
    for fold in range(K):
        stored = config_lib.load_json(workdir / f"fold{fold}/config.json")
        assert stored.data.train == str(moved)


def test_a_fold_that_could_not_train_is_known_before_any(make_config, tmp_path):
    file = grouped_cells(tmp_path / "cells.npz", ["P1", "P2"])
    with pytest.raises(UserError, match=r"config.batch_size is 40, but the training split has 32"):
        draw_folds(make_config, tmp_path, file, batch_size=40)
    content = dict(np.load(file))
    content["groups"] = np.array(
        [f"{'PQ'[i % 2]}{label}" for i, label in enumerate(content["labels"])]
    )
    np.savez(file, **content)
    auc = {"early_stopping.metric": "auc"}
    with pytest.raises(UserError, match=r"'auc', .* all images of fold 1 are of one class"):
        draw_folds(make_config, tmp_path, file, **auc)
    assert not (tmp_path / "run/fold0").exists()


def test_an_error_in_a_fold_names_it(make_config, tmp_path, monkeypatch):
    def fails(config, workdir):
        raise UserError("the loss did not fall")

    monkeypatch.setattr(cross_validation.run, "train", fails)
    with pytest.raises(UserError, match=r"^fold 1 of 3: the loss did not fall$"):
        cross_validation.train(make_config(**CHANGES), tmp_path / "run")


def test_a_class_of_one_group_only(make_config, tmp_path):
    file = tmp_path / "cells.npz"
    grouped_cells(file, ["P1", "P2"])
    content = dict(np.load(file))
    content["groups"][content["labels"] == 1] = "P2"
    content["groups"][np.flatnonzero(content["labels"] == 0)[:9]] = "P3"
    np.savez(file, **content)
    with pytest.raises(
        UserError, match=r"all images of class eosinophil of .* are of the group P2"
    ):
        draw_folds(make_config, tmp_path, str(file))


def test_kinds_of_folds(make_config):
    assert make_config(folds=LOGO).folds == LOGO
    for wrong in ("leave-one-out", 1, -2):
        with pytest.raises(
            UserError, match=r"expected 0, an integer of at least 2, or leave-one-gr"
        ):
            make_config(folds=wrong)
    with pytest.raises(UserError, match=r"folds is 2.5, expected a value of type int"):
        make_config(folds=2.5)


@pytest.mark.slow
def test_each_group_is_judged_by_the_run_that_did_not_see_it(make_config, tmp_path):
    file = grouped_cells(tmp_path / "cells.npz", ["P1", "P2", "P2", "P2"], n=32)
    changes = {
        "phases.head.epochs": 0,
        "phases.finetune.epochs": 1,
        "evaluation.label_review": False,
        "batch_size": 8,  # as many as the group P1 has
    }
    config = make_config(folds=LOGO, **{"data.train": file, "data.test": "0", **changes})
    results = cross_validation.train(config, tmp_path / "run")
    found = results["out_of_fold"]
    assert [(fold["groups"], fold["n"]) for fold in found["folds"]] == [(["P1"], 8), (["P2"], 24)]
    rows = found["groups"]["per_group"]
    assert {name: row["accuracy"] for name, row in rows.items()} == {
        name: fold["accuracy"] for fold in found["folds"] for name in fold["groups"]
    }
    assert (tmp_path / "run/evaluate/out_of_fold/group_predictions.csv").is_file()
    assert isinstance(bloodjax.load(tmp_path / "run"), Ensemble)
    page = (tmp_path / "run/report/index.html").read_text(encoding="utf-8")
    assert '<section id="groups"' in page
