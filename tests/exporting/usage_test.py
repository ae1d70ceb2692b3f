"""The Python code of a model card; `hub_folder_test` runs it."""

import pytest

from bloodjax.exporting import usage


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_the_code_is_python_and_shows_only_programs_that_are_there(fit):
    metadata = {"network": "resnet50", "fit": fit}
    without = usage.snippets(metadata, ["README.md"])
    every = usage.snippets(metadata, ["model.stablehlo", "model.onnx"])
    assert len(every) == len(without) + 2
    for heading, code in every.items():
        compile(code, heading, "exec")
        assert "SQUARE" not in code
        assert "NETWORK" not in code
