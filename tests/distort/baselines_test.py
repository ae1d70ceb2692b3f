import pytest

from bloodjax.distort import baselines, corruptions


def test_there_is_a_figure_for_each_corruption():
    assert tuple(baselines.CORRUPTED) == corruptions.GROUPS["all"]
    # Corruption makes AlexNet worse: the relative error divides by what it adds.
    assert all(baselines.CLEAN < error < 1 for error in baselines.CORRUPTED.values())


def test_the_figures_are_the_package_s():
    package = pytest.importorskip("medmnistc.utils.baselines", reason="needs medmnistc")
    theirs = package.BASELINES["bloodmnist"]
    assert theirs == {"clean_score": baselines.CLEAN, "raw_scores": baselines.CORRUPTED}
