import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bloodjax.data.synthetic import render
from bloodjax.errors import UserError


def keys(images):
    return [image.tobytes() for image in images]


@pytest.fixture(scope="module")
def cells():
    return render.render_dataset(400, seed=3)


def test_balanced_shuffled_images_of_the_eight_kinds(cells):
    assert cells.classes == (
        "basophil",
        "eosinophil",
        "erythroblast",
        "ig",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    )
    assert cells.images.shape == (400, 96, 96, 3)
    assert cells.images.dtype == np.uint8
    assert np.bincount(cells.labels).tolist() == [50] * 8
    assert np.abs(np.diff(cells.labels)).mean() > 1  # sorted labels would give 0.02
    assert cells.names == tuple(str(i) for i in range(400))
    assert set(cells.splits) == set(cells.groups) == {""}
    assert len(set(keys(cells.images))) == 400


@pytest.mark.parametrize(("n", "size"), [(8, 16), (13, 31), (9, 224)])
def test_any_number_and_size(n, size):
    cells = render.render_dataset(n, size)
    counts = np.bincount(cells.labels, minlength=8)
    assert cells.images.shape == (n, size, size, 3)
    assert counts.max() - counts.min() <= 1
    assert cells.images.std((1, 2)).min() > 2  # every image shows something


def test_the_seed_decides_on_every_bit():
    first, again, other = (render.render_dataset(24, 48, seed=s) for s in (5, 5, 6))
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert not set(keys(first.images)) & set(keys(other.images))


@pytest.mark.full
def test_colour_alone_does_not_tell_the_kinds_apart():
    cells = render.render_dataset(1600, 64)
    histograms = np.array(
        [[np.histogram(image[..., c], 16, (0, 256))[0] for c in range(3)] for image in cells.images]
    ).reshape(len(cells), 48)
    baseline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    baseline.fit(histograms[:1200], cells.labels[:1200])
    assert 0.4 < baseline.score(histograms[1200:], cells.labels[1200:]) < 0.8


def test_render_plants_what_it_is_told():
    plain = render.render_dataset(40, 32, seed=1)
    flawed = render.render_dataset(40, 32, seed=1, duplicates=5, conflicts=3, junk=11)
    assert len(flawed) == 59
    assert flawed.names == tuple(str(i) for i in range(59))
    labels_of = {}
    for key, label in zip(keys(flawed.images), flawed.labels.tolist(), strict=True):
        labels_of.setdefault(key, []).append(label)
    junk = labels_of.pop(render.cartoon(32).tobytes())
    assert np.bincount(junk, minlength=8).tolist() == [2, 2, 2, 1, 1, 1, 1, 1]
    assert set(labels_of) == set(keys(plain.images))
    pairs = [labels for labels in labels_of.values() if len(labels) > 1]
    assert sorted(len(set(labels)) for labels in pairs) == [1] * 5 + [2] * 3
    assert all(len(labels) == 2 for labels in pairs)


def test_plant_names_what_it_planted(cells):
    few = cells.take(np.arange(20))
    few = dataclasses.replace(few, groups=tuple(f"patient {i}" for i in range(20)))
    flawed, planted = render.plant_flaws(few, duplicates=17, conflicts=12, junk=4, seed=9)
    at = {name: i for i, name in enumerate(flawed.names)}
    for flaw, same in [("duplicates", True), ("conflicts", False)]:
        for original, copy in planted[flaw]:
            i, j = at[original], at[copy]
            np.testing.assert_array_equal(flawed.images[i], flawed.images[j])
            assert (flawed.labels[i] == flawed.labels[j]) == same
            assert flawed.groups[i] == flawed.groups[j]
    assert [len(planted[flaw]) for flaw in ("duplicates", "conflicts", "junk")] == [17, 12, 4]
    for name in planted["junk"]:
        np.testing.assert_array_equal(flawed.images[at[name]], render.cartoon(96))

    copies = {copy for flaw in ("duplicates", "conflicts") for _, copy in planted[flaw]}
    rest = [at[name] for name in flawed.names if name not in copies | set(planted["junk"])]
    assert rest != sorted(range(20))  # the flaws are not simply at the end
    left = {flawed.groups[i]: (flawed.labels[i], flawed.images[i]) for i in rest}
    for group, label, image in zip(few.groups, few.labels, few.images, strict=True):
        assert left[group][0] == label
        np.testing.assert_array_equal(left[group][1], image)


def test_cartoon_is_one_drawing_at_any_size():
    large, small = render.cartoon(96), render.cartoon(16)
    assert len(np.unique(large.reshape(-1, 3), axis=0)) == 4
    assert (large[3::6, 3::6] == small).all(-1).mean() > 0.9
    np.testing.assert_array_equal(large, large[:, ::-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 7}, "synthetic data: n is 7, expected 8 or more"),
        ({"n": 8, "size": 15}, "synthetic data: size is 15, expected 16 or more"),
        ({"n": 8, "seed": -1}, "synthetic data: seed is -1, expected 0 or more"),
        ({"n": 8, "duplicates": -1}, "synthetic data: duplicates is -1, expected 0 or more"),
        ({"n": 8, "conflicts": -2}, "synthetic data: conflicts is -2, expected 0 or more"),
        ({"n": 8, "junk": -3}, "synthetic data: junk is -3, expected 0 or more"),
    ],
)
def test_impossible_numbers_are_refused_by_name(arguments, message):
    with pytest.raises(UserError) as caught:
        render.render_dataset(**arguments)
    assert str(caught.value) == message
