import json
import time

import numpy as np
import pytest

from bloodjax.data import fingerprint, splits
from bloodjax.data.dataset import Dataset
from bloodjax.data.reading import LeftOut, Reading
from bloodjax.errors import UserError

FRACTIONS = {"train": 0.7, "validation": 0.15, "test": 0.15}


def random_case(seed):
    """Labels of skewed classes, and fractions of two to four parts."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(8, size=int(rng.integers(300, 3000)), p=rng.dirichlet(np.ones(8) * 2))
    shares = rng.dirichlet(np.ones(rng.integers(2, 5)) * 5)
    return labels, {f"part {i}": float(share) for i, share in enumerate(shares)}


def counts(labels, parts):
    """Images by part (rows) and class (columns)."""
    return np.stack([np.bincount(labels[p], minlength=labels.max() + 1) for p in parts.values()])


@pytest.mark.parametrize("seed", range(10))
def test_split_of_single_images_keeps_the_fractions_of_each_class(seed):
    labels, fractions = random_case(seed)
    parts = splits.split(labels, fractions, np.arange(len(labels)), seed)
    assert list(parts) == list(fractions)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(parts.values()))), range(len(labels)))
    found = counts(labels, parts)
    exact = np.outer(list(fractions.values()), np.bincount(labels, minlength=found.shape[1]))
    large = exact.min(axis=0) >= 1  # classes that are in every part by their fractions alone
    assert np.abs(found - exact)[:, large].max() < 1
    assert found[:, found.sum(axis=0) >= len(fractions)].min() >= 1


@pytest.mark.parametrize("seed", range(5))
def test_split_keeps_groups_whole_and_fractions_near(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 200, 5000)
    labels = rng.integers(0, 8, 5000)
    parts = splits.split(labels, FRACTIONS, [f"patient {g}" for g in groups], seed)
    assert sum(len(np.unique(groups[p])) for p in parts.values()) == 200
    exact = np.outer(list(FRACTIONS.values()), np.bincount(labels))
    assert np.abs(counts(labels, parts) / exact - 1).max() < 0.25


def test_split_puts_each_class_with_enough_groups_in_each_part():
    # Class 0 has three groups of very different sizes, class 1 two, class 2 thirty.
    sizes = [(0, 50), (0, 2), (0, 1), (1, 5), (1, 5), *[(2, 3)] * 30]
    labels = np.concatenate([np.full(n, label) for label, n in sizes])
    groups = np.concatenate([np.full(n, i) for i, (_, n) in enumerate(sizes)])
    for seed in range(10):
        found = counts(labels, splits.split(labels, FRACTIONS, groups, seed))
        assert found[:, [0, 2]].min() >= 1
        assert found[0, 0] == 50


def test_split_is_a_function_of_its_seed():
    labels, fractions = random_case(0)
    one, same, other = (
        splits.split(labels, fractions, np.arange(len(labels)), seed) for seed in (1, 1, 2)
    )
    for part in fractions:
        np.testing.assert_array_equal(one[part], same[part])
    assert any(not np.array_equal(one[part], other[part]) for part in fractions)


def test_split_of_many_images_takes_seconds():
    # 0.8 s on an idle core; time that grows with the square of the number would be minutes.
    labels = np.random.default_rng(0).integers(0, 8, 100_000)
    start = time.process_time()
    splits.split(labels, FRACTIONS, np.arange(100_000), 0)
    assert time.process_time() - start < 8


@pytest.mark.parametrize("shares", [{}, {"a": 0.5, "b": 0.4}, {"a": 1.2, "b": -0.2}, {"a": np.nan}])
def test_split_refuses_fractions_that_are_none(shares):
    with pytest.raises(UserError, match=r"fractions of a split .* expected a sum of 1, each > 0"):
        splits.split(np.zeros(9, int), shares, np.arange(9), 0)


def test_merge_groups_follows_chains():
    groups = ["p", "", "q", "p", "", "r", ""]
    merged = splits.merge_groups(groups, [[1, 2], [4, 2], [6]])
    expected = {frozenset({0, 3}), frozenset({1, 2, 4}), frozenset({5}), frozenset({6})}
    assert {frozenset(np.flatnonzero(merged == m)) for m in merged} == expected


def test_merge_groups_without_links_keeps_all_apart():
    assert len(set(splits.merge_groups(["", "", ""], []))) == 3


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "splits.json"
    parts = {"train": np.array([2, 0]), "validation": np.array([1])}
    names = {"train": ("a", "b", "c"), "validation": ("0", "1")}
    sources = {part: {"spec": f"{part}.zip", "fingerprint": "sha256:0"} for part in parts}
    splits.save(path, parts, names, sources, 7)
    return path


def test_read_gives_what_save_wrote(saved):
    content = splits.load(saved)
    assert content["seed"] == 7
    assert content["parts"] == {"train": ["c", "a"], "validation": ["1"]}
    assert content["sources"]["train"] == {"spec": "train.zip", "fingerprint": "sha256:0"}


def test_an_earlier_file_lacks_hashes_and_classes(saved):
    content = json.loads(saved.read_text())
    kept = {key: content[key] for key in ("seed", "sources", "parts")}
    saved.write_text(json.dumps(kept))
    added = {"classes": [], "pixels": {}, "groups": {}, "left_out": []}
    assert splits.load(saved) == {**kept, **added}


def test_hashes_are_those_of_each_part(tmp_path):
    path, hashes = tmp_path / "splits.json", np.array([5, 6, 2**63], np.uint64)
    parts, source = {"train": np.array([2, 0])}, {"spec": "a.zip", "fingerprint": "blake2b:0"}
    left_out = [LeftOut("junk", "ill", 1)]
    names = {"train": ("a", "b", "c")}
    sources = {"train": source | {"path": "/a.zip"}}
    splits.save(
        path,
        parts,
        names,
        sources,
        0,
        hashes={"train": hashes},
        groups={"train": ("P1", "P2", "P1")},
        left_out=left_out,
        classes=("ill",),
    )
    content = splits.load(path)
    assert fingerprint.from_text(content["pixels"]["train"]).tolist() == [2**63, 5]
    assert content["groups"] == {"train": splits.hash_groups(["P1"])}
    assert content["left_out"] == [["junk", "ill", 1]]
    assert content["classes"] == ["ill"]


def test_save_replaces_the_file_and_leaves_nothing_beside_it(saved):
    splits.save(saved, {}, {}, {}, 8)
    assert splits.load(saved)["seed"] == 8
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("seed"),
        lambda content: content["sources"].pop("train"),
        lambda content: content["sources"].update(train="train.zip"),
        lambda content: content["sources"]["train"].pop("spec"),
        lambda content: content["sources"]["train"].update(spec=None),
        lambda content: content["parts"].update(train="a"),
        lambda content: content["parts"].update(train=[1]),
        lambda content: content.update(pixels={"train": "AAAA"}),
        lambda content: content.update(pixels={"train": "AAAAAAAAAAA="}),
        lambda content: content.update(left_out=[["junk", "ill", "1"]]),
        lambda content: content.update(classes="ill"),
        lambda content: content.update(groups={"train": "AAAA"}),
    ],
)
def test_read_refuses_another_form(saved, damage):
    content = json.loads(saved.read_text())
    damage(content)
    saved.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"splits.json: is damaged .*, expected seed, parts"):
        splits.load(saved)


def test_read_refuses_a_file_that_is_cut_short_or_missing(saved):
    saved.write_text(saved.read_text()[:-10])
    with pytest.raises(UserError, match=r"splits.json: is damaged"):
        splits.load(saved)
    saved.unlink()
    with pytest.raises(UserError, match=r"splits.json: No such file"):
        splits.load(saved)


def of_groups(groups, spec="a.zip"):
    n = len(groups)
    return Dataset(
        np.zeros((n, 1, 1, 3), np.uint8),
        np.zeros(n, np.int32),
        tuple(map(str, range(n))),
        ("a",),
        ("",) * n,
        tuple(groups),
        Reading(spec),
    )


def test_groups_in_several_splits_are_found():
    parts = {
        "train": of_groups(["P1", "P1", "P2", "", "fold_1"]),
        "validation": of_groups(["P3", "", "fold_1"]),
        "test": of_groups(["P3", "P2", "P2", "fold_1"], "b.zip"),
    }
    assert splits.spanning_groups(parts) == {
        "P2": ("train", "test"),
        "P3": ("validation", "test"),
        "fold_1": ("train", "validation"),  # that of another source is another one
    }
    assert splits.spanning_groups({"train": parts["train"]}) == {}
    mask = splits.in_groups_of(parts["test"], parts["train"])
    assert mask.tolist() == [False, True, True, False]


def test_hashes_of_groups_do_not_depend_on_their_order_or_number():
    hashes = splits.hash_groups(["P2", "P1", "P1", "", "fold 3"])
    assert hashes == splits.hash_groups(["P1", "P2"])
    assert len(fingerprint.from_text(hashes)) == 2
    assert hashes != splits.hash_groups(["P1", "P3"])
    assert splits.hash_groups([]) == ""
