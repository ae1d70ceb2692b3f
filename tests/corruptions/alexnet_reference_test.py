import pytest

from bloodjax.corruptions import alexnet_reference, registry


def test_there_is_a_figure_for_each_corruption():
    assert tuple(alexnet_reference.CORRUPTED) == registry.GROUPS["all"]
    # Each corruption increases AlexNet's error; the relative error divides by the increase.
    assert all(
        alexnet_reference.CLEAN < error < 1 for error in alexnet_reference.CORRUPTED.values()
    )


def test_the_figures_are_the_package_s():
    package = pytest.importorskip("medmnistc.utils.baselines", reason="needs medmnistc")
    theirs = package.BASELINES["bloodmnist"]
    assert theirs == {
        "clean_score": alexnet_reference.CLEAN,
        "raw_scores": alexnet_reference.CORRUPTED,
    }
