import numpy as np
import pytest
from scipy.special import logsumexp

from bloodjax.metrics import novelty

METHODS = tuple(novelty.METHODS)


def clusters(n=300, classes=3, width=40, seed=0):
    """Features and logits of images whose classes are clusters; the last one has another shape."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = 4 * np.eye(classes, width)
    features = centres[labels] + 0.3 * rng.normal(size=(n, width)) * np.linspace(1, 0.1, width)
    return np.float32(features), np.float32(4 * features[:, :classes]), labels


FEATURES, LOGITS, LABELS = clusters()


def described(features, logits=LOGITS):
    """Images of these features, which stand for their appearance, too."""
    return novelty.Description(features, logits[: len(features)], features[:, :10])


KNOWN, OTHERS = described(FEATURES), described(*clusters(seed=2)[:2])


def fit(method, known=KNOWN, labels=LABELS):
    return novelty.fit(method, known, labels, OTHERS if known is KNOWN else known)


@pytest.mark.parametrize("method", METHODS)
def test_images_of_no_class_have_higher_scores(method):
    arrays = fit(method)
    seen, seen_logits, _ = clusters(seed=1)
    strange = np.roll(seen, 10, axis=1)
    known = novelty.score(method, arrays, described(seen, seen_logits))
    unknown = novelty.score(method, arrays, described(strange, 4 * strange[:, :3]))
    assert novelty.auroc(known, unknown) > 0.99


def test_the_mahalanobis_distance_is_that_of_its_formula():
    """With a basis of full rank nothing is approximated but the shrinkage, done here by hand."""
    arrays = fit("mahalanobis")
    x = np.float64(FEATURES)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    means = np.stack([x[c == LABELS].mean(axis=0) for c in range(3)])
    residuals = x - means[LABELS]
    n, d = x.shape
    s = residuals.T @ residuals / n
    trace, squares = np.trace(s), np.trace(s @ s)
    rho = ((1 - 2 / d) * squares + trace**2) / ((n + 1 - 2 / d) * (squares - trace**2 / d))
    inverse = np.linalg.inv((1 - rho) * s + rho * trace / d * np.eye(d))
    from_means = x[:, None] - means[None]
    expected = np.einsum("nkd,de,nke->nk", from_means, inverse, from_means).min(axis=1)
    found = novelty.score("mahalanobis", arrays, KNOWN)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_beyond_the_basis_every_direction_counts_the_same():
    rng = np.random.default_rng(0)
    features = np.float32(rng.normal(size=(400, 300)) + 5 * np.eye(4, 300)[np.arange(400) % 4])
    labels = np.arange(400) % 4
    images = described(features, features[:, :4])
    arrays = fit("mahalanobis", images, labels)
    assert arrays["basis"].shape == (300, 128)
    np.testing.assert_allclose(arrays["basis"].T @ arrays["basis"], np.eye(128), atol=1e-5)
    x = np.float64(novelty.unit(features))
    basis, whitening = np.float64(arrays["basis"]), np.float64(arrays["class_whitening"])
    from_means = x[:, None] - np.float64(arrays["class_means"])[None]
    inside = from_means @ basis
    outside = (from_means**2).sum(-1) - (inside**2).sum(-1)
    expected = ((inside @ whitening) ** 2).sum(-1) + outside / arrays["class_other_variance"]
    found = novelty.score("mahalanobis", arrays, images)
    np.testing.assert_allclose(found, expected.min(axis=1), rtol=1e-4)


def test_relative_is_the_distance_less_that_under_one_gaussian():
    arrays = fit("relative_mahalanobis")
    one = {f"class_{k.removeprefix('all_')}": v for k, v in arrays.items() if k.startswith("all_")}
    background = novelty.score("mahalanobis", {**arrays, **one}, KNOWN)
    nearest = novelty.score("mahalanobis", arrays, KNOWN)
    found = novelty.score("relative_mahalanobis", arrays, KNOWN)
    np.testing.assert_allclose(found, nearest - background, rtol=1e-9)


@pytest.mark.parametrize("n", [12, 300])
def test_no_gaussian_of_a_class_is_wider_than_that_of_all_images(n):
    """Otherwise the relative distance would fall far from all images."""
    features, logits, labels = clusters(n)
    arrays = fit("relative_mahalanobis", described(features, logits), labels)
    inverses = [np.float64(arrays[f"{name}_whitening"]) for name in ("class", "all")]
    gaps = np.linalg.eigvalsh(inverses[0] @ inverses[0].T - inverses[1] @ inverses[1].T)
    assert gaps.min() > -1e-4 * gaps.max()
    assert arrays["class_other_variance"] <= arrays["all_other_variance"]


def test_neighbours_are_the_fifth_nearest_or_those_of_the_smallest_class():
    x = np.float64(novelty.unit(FEATURES))
    distances = np.sort(np.linalg.norm(x[:7, None] - x[None], axis=2), axis=1)
    arrays = fit("knn")
    found = novelty.score("knn", arrays, KNOWN.take(np.arange(7)))
    np.testing.assert_allclose(found, distances[:, 4], atol=1e-4)
    few = np.array([0, 0, *[1] * 298])
    assert fit("knn", KNOWN, few)["k"] == 2


def test_energy_is_that_of_the_logits():
    found = novelty.score("energy", {}, KNOWN)
    np.testing.assert_allclose(found, -logsumexp(np.float64(LOGITS), axis=1))


def test_combined_is_a_weighted_sum_of_standardised_parts():
    arrays = fit("combined")
    gaussians = novelty._fit_gaussians(np.float64(KNOWN.appearance), LABELS)

    def parts(images):
        nearest, relative = (
            novelty.score(name, fit(name), images)
            for name in ("mahalanobis", "relative_mahalanobis")
        )
        energy = novelty.score("energy", {}, images)
        appearance = novelty._nearest_class(gaussians, np.float64(images.appearance))
        return np.cbrt(nearest), energy, relative, np.cbrt(appearance)

    expected, bounded = 0, 0
    for weight, bound, usual, part in zip(
        (1, 1, 1, 0.2), (np.inf, 2, 2, np.inf), parts(OTHERS), parts(KNOWN), strict=True
    ):
        middle, upper = np.quantile(usual, (0.5, 0.84))
        standardised = (part - middle) / (upper - middle)
        expected += weight * np.minimum(standardised, bound)
        bounded += (standardised > bound).sum()
    np.testing.assert_allclose(novelty.score("combined", arrays, KNOWN), expected, rtol=1e-4)
    assert bounded > 0


def test_each_part_of_combined_can_reject():
    arrays = fit("combined")
    seen = described(*clusters(seed=1)[:2])
    usual = novelty.score("combined", arrays, seen)
    for name, strange in (
        ("features", np.roll(seen.features, 10, axis=1)),
        ("logits", np.zeros_like(seen.logits)),
        ("appearance", seen.appearance + 9),
    ):
        scores = novelty.score("combined", arrays, seen._replace(**{name: strange}))
        assert novelty.auroc(usual, scores) > 0.75, name


@pytest.mark.parametrize("method", METHODS)
def test_an_output_that_is_not_finite_is_unlike_everything(method):
    arrays = fit(method)
    features, logits, appearance = (values[:4].copy() for values in KNOWN)
    features[1, 2], logits[2, 0], appearance[3, 1] = np.nan, np.inf, np.nan
    found = novelty.score(method, arrays, novelty.Description(features, logits, appearance))
    assert np.isfinite(found).tolist() == [True, False, False, False]
    assert (found[1:] == np.inf).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (np.full((6, 5), 3, np.float32), np.arange(6) % 2),  # constant
        (np.zeros((6, 5), np.float32), np.arange(6) % 2),
        (np.eye(3, 5, dtype=np.float32), np.arange(3)),  # one image of a class
        (np.ones((1, 5), np.float32), np.zeros(1, int)),
        (np.random.default_rng(0).random((4, 1), np.float32), np.arange(4) % 2),  # one feature
    ],
)
def test_features_that_hardly_vary_give_finite_scores(method, features, labels):
    arrays = fit(method, described(features, features[:, :1]), labels)
    for x in (features, -features, np.float32(features + 1)):
        assert np.isfinite(novelty.score(method, arrays, described(x, x[:, :1]))).all()


def test_methods_that_keep_the_same_are_fitted_once():
    fitted = novelty.fit_all(KNOWN, LABELS, OTHERS)
    assert tuple(fitted) == METHODS
    assert fitted["mahalanobis"] is fitted["relative_mahalanobis"]
    again = novelty.fit_all(KNOWN, LABELS, OTHERS)
    for name, arrays in fitted.items():
        for key, values in arrays.items():
            np.testing.assert_array_equal(values, again[name][key])


@pytest.mark.parametrize(("n", "rate", "above"), [(1000, 0.01, 10), (99, 0.01, 0), (1, 0.5, 0)])
def test_the_threshold_rejects_at_most_the_rate(n, rate, above):
    scores = np.random.default_rng(0).normal(size=n)
    assert (scores > novelty.threshold(scores, rate)).sum() == above


def test_ties_are_not_rejected():
    assert novelty.threshold(np.ones(50), 0.1) == 1


def test_auroc_counts_pairs():
    known, unknown = np.array([0.0, 1, 2, 2]), np.array([1.0, 2, 3])
    pairs = np.sign(unknown[:, None] - known[None]) / 2 + 0.5
    assert novelty.auroc(known, unknown) == pytest.approx(pairs.mean())


@pytest.mark.parametrize("known", [20, 50, 200, 1000])
def test_images_of_the_known_kind_are_rarely_called_unlike(known):
    rng = np.random.default_rng(known)
    n, alarms, shares = 500, 0, []
    for _ in range(400):
        limit = novelty.threshold(rng.normal(size=known), 0.01)
        rejected = int((rng.normal(size=n) > limit).sum())
        alarms += novelty.are_unlike(rejected, n, 0.01, known)
        shares.append(rejected / n)
    assert alarms <= 3
    assert np.mean(shares) == pytest.approx(novelty.expected_share(0.01, known), rel=0.15)
    assert novelty.are_unlike(n // 2, n, 0.01, known)


def test_a_threshold_of_very_many_images_rejects_what_was_asked_for():
    assert novelty.expected_share(0.01) == 0.01
    assert novelty.expected_share(0.01, 10**6) == pytest.approx(0.01, rel=1e-3)
    assert not novelty.are_unlike(3, 100, 0.01)
    assert novelty.are_unlike(9, 100, 0.01)
    assert novelty.are_unlike(9, 100, 0.01, 10**6)
    assert not novelty.are_unlike(0, 0, 0.01)
