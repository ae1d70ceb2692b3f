import numpy as np

from bloodjax.report import picture_choice


def test_most_confident_mistakes_come_first():
    probabilities = np.array([[0.6, 0.4], [0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]])
    labels = np.array([1, 1, 1, 0, 0])
    found = picture_choice.confident_mistakes(probabilities, labels)
    assert found.tolist() == [2, 4, 3, 0]
    assert picture_choice.confident_mistakes(probabilities, labels, k=2).tolist() == [2, 4]


def test_no_mistakes_are_no_indices():
    assert picture_choice.confident_mistakes(np.eye(3), np.arange(3)).tolist() == []


def made(n=300, num_classes=3):
    """Probabilities of images that are all predicted as the class after their label's, or as it."""
    labels = np.arange(n) % num_classes
    predicted = np.where(np.arange(n) < n // 2, (labels + 1) % num_classes, labels)
    probabilities = np.full((n, num_classes), 0.1)
    probabilities[np.arange(n), predicted] = np.linspace(0.5, 0.9, n)
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels, predicted


def test_each_cell_has_its_own_images():
    probabilities, labels, predicted = made()
    found = picture_choice.cells(probabilities, labels)
    assert found.keys() == {(i, j) for i in range(3) for j in (i, (i + 1) % 3)}
    for (label, other), indices in found.items():
        assert (labels[indices] == label).all()
        assert (predicted[indices] == other).all()


def test_confusions_are_the_most_confident_and_come_first():
    probabilities, labels, _ = made()
    found = picture_choice.cells(probabilities, labels)
    cells = list(found)
    assert [i != j for i, j in cells] == [True] * 3 + [False] * 3
    assert found[0, 1].tolist() == [147, 144, 141, 138, 135, 132, 129, 126]
    assert found[0, 0].tolist() == [150, 153, 156, 159], "the least confident of the right ones"


def test_all_cells_together_have_400_images():
    probabilities, labels, _ = made(3_000, num_classes=300)
    found = picture_choice.cells(probabilities, labels)
    assert sum(len(indices) for indices in found.values()) == picture_choice.OF_ALL_CELLS
    assert all(label != other for label, other in found)


def test_no_cell_is_searched_once_400_images_are_chosen(monkeypatch):
    probabilities, labels, _ = made(3_000, num_classes=1_500)
    searched, find = [], np.flatnonzero
    monkeypatch.setattr(np, "flatnonzero", lambda found: searched.append(1) or find(found))
    assert len(picture_choice.cells(probabilities, labels)) == len(searched) == 400


def test_typical_and_doubtful_images_of_a_class():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9]])
    found = picture_choice.examples(probabilities, np.array([0, 0, 0, 0, 1]))
    typical, doubtful = found[0]
    assert typical.tolist() == [0, 3, 1]
    assert doubtful.tolist() == [2], "none that is typical too"
    assert [part.tolist() for part in found[1]] == [[4], []]


def test_a_class_that_is_never_right_has_doubtful_images_only():
    probabilities = np.array([[0.4, 0.6], [0.1, 0.9]])
    typical, doubtful = picture_choice.examples(probabilities, np.array([0, 0]))[0]
    assert (typical.tolist(), doubtful.tolist()) == ([], [1, 0])


def test_many_classes_have_no_more_than_150_examples():
    probabilities, labels, _ = made(3_000, num_classes=300)
    found = picture_choice.examples(probabilities, labels)
    assert 140 < sum(len(part) for both in found.values() for part in both) <= 150


def test_images_of_a_label_are_found_missed_and_mistaken():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6], [0.6, 0.2]])
    labels = np.array([[1, 0], [1, 0], [0, 0], [1, 0], [1, 0]])
    found = picture_choice.of_labels(probabilities, labels)
    assert [each.tolist() for each in found[0]] == [[0, 4, 3], [1], [2]]
    assert [each.tolist() for each in found[1]] == [[], [], [1, 3, 2]]


def test_images_of_many_labels_are_limited():
    rng = np.random.default_rng(0)
    labels = (rng.random((50, 40)) < 0.5).astype(int)
    found = picture_choice.of_labels(rng.random((50, 40)), labels)
    assert sum(len(each) for three in found.values() for each in three) <= 150
    assert list(found) == list(range(len(found)))
