import importlib.util
import io
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bloodjax.augment.tta import TTAConfig
from bloodjax.data import images as images_lib
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.evaluation import calibration, classifier
from bloodjax.evaluation.appearance import Appearance
from bloodjax.evaluation.site import Site
from bloodjax.exporting import bundle as bundle_lib
from bloodjax.exporting import companions, exporter, function, graph, stablehlo, tracing
from bloodjax.exporting.bundle import Bundle, Vectors, Weights
from bloodjax.metrics.calibration import Calibration

# Runs a script where bloodjax and flax cannot be imported.
_WITHOUT_US = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("bloodjax", "flax"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Refuse())
sys.path[:] = [p for p in sys.path if p]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _needs_onnx():
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason="needs the extra [export]")


def _check(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", _WITHOUT_US, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=script.parent,
    )


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Folder with both formats of one run."""
    _needs_onnx()
    folder = tmp_path_factory.mktemp("exported")
    for name in ("stablehlo", "onnx"):
        exporter.export_run(trained, name, folder / f"cells.{name}", features=True)
    return folder


@pytest.mark.full
@pytest.mark.parametrize("name", ["stablehlo", "onnx"])
def test_a_jpeg_gets_the_probabilities_of_predict(exported, trained, tmp_path, name):
    cell = render.render_dataset(8, 50, seed=3).images[0]
    path = tmp_path / "cell.jpg"
    path.write_bytes(_jpeg(cell[:, :41]))
    out = exported / f"cells.{name}"
    model = classifier.load(trained)
    square = images_lib.decode(path.read_bytes(), model.config.data.image_size)
    expected = model.predict(square, "none")[0]
    if name == "stablehlo":  # takes the image as it is
        run = stablehlo.runner(out.read_bytes())
        found = run(np.asarray(Image.open(path).convert("RGB"))[None])[0]
    else:
        from bloodjax.exporting import onnx_runtime

        found = onnx_runtime.runner(out.read_bytes())(square[None])[0]
    np.testing.assert_allclose(found, expected, atol=exporter.FORMATS[name][1])

    done = _check(exported / f"cells.{name}{companions.SCRIPT}", path)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("largest difference")
    assert first.endswith("good")
    winner = int(expected.argmax())
    assert second == f"{path}: {model.classes[winner]} {expected[winner]:.3f}"


def _jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.full
def test_the_script_notices_another_answer(exported, tmp_path):
    for path in exported.iterdir():
        if path.name.startswith("cells.onnx"):
            shutil.copy(path, tmp_path)
    vectors = tmp_path / f"cells.onnx{companions.VECTORS}"
    content = dict(np.load(vectors))
    content["probabilities"] = content["probabilities"][:, ::-1]
    np.savez(vectors, **content)
    done = _check(tmp_path / f"cells.onnx{companions.SCRIPT}")
    assert done.returncode == 1
    assert done.stdout.strip().endswith("BAD")


@pytest.mark.full
def test_what_travels_with_a_file(exported, trained):
    import onnx

    model = classifier.load(trained)
    metadata = json.loads((exported / "cells.onnx.json").read_text())
    assert metadata["classes"] == list(model.classes)
    assert metadata["weights"] == {"location": "", "licence": "", "citation": ""}
    assert metadata["calibration"]["method"] == model.calibration("none").method
    assert metadata["input"] == "uint8 [batch, 32, 32, 3], RGB"
    assert metadata["outputs"] == ["probabilities", "features"]
    assert metadata["checked_on"] == "validation"
    assert metadata["largest_difference"] <= metadata["tolerance"] == 1e-4
    interval = metadata["metrics"]["test"]["accuracy"]
    assert interval["low"] <= interval["value"] <= interval["high"]
    inside = onnx.load(exported / "cells.onnx").metadata_props
    assert {p.key: json.loads(p.value) for p in inside if p.key in ("classes", "image_size")} == {
        "classes": list(model.classes),
        "image_size": 32,
    }
    with np.load(exported / "cells.onnx.vectors.npz", allow_pickle=False) as vectors:
        assert vectors["images"].shape == (16, 32, 32, 3)
        expected = model.predict(vectors["images"], "none")
        np.testing.assert_allclose(vectors["probabilities"], expected, atol=1e-6)
        assert vectors["large"].shape[1:3] == (43, 69)
    stated = json.loads((exported / "cells.stablehlo.json").read_text())
    assert stated["input"] == "uint8 [batch, height, width, 3], RGB"


def test_the_site_adjusts_probabilities_as_the_classifier_does():
    names = ("a", "b", "c")
    site = Site(("a", "c"), (0.5, 1.0, 3.0))
    probabilities = np.array([[0.1, 0.2, 0.7], [0, 1, 0], [1, 0, 0]], np.float32)
    found = function.adjusted(jnp.asarray(probabilities), site, names)
    np.testing.assert_allclose(found, site.adjust(probabilities, names), atol=1e-6)
    assert (np.asarray(found)[:, 1] == 0).all()
    same = jnp.asarray(probabilities)
    assert function.adjusted(same, None, names) is same
    assert function.adjusted(same, Site(), names) is same


def test_a_site_s_stains_may_round_differently_by_a_grey_level():
    assert exporter.tolerance("onnx", None) == exporter.tolerance("onnx", Site()) == 1e-4
    assert exporter.tolerance("stablehlo", Site(appearance=Appearance(zoom=1.25))) == 1e-5
    stained = Appearance(density=((0.7, 0.0, 0.0), (0.0, 0.7, 0.0), (0.0, 0.0, 0.7)))
    assert exporter.tolerance("onnx", Site(appearance=stained)) == 1e-2


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "quantize"), [("stablehlo", "none"), ("onnx", "none"), ("onnx", "int8")]
)
def test_an_export_is_for_the_site_of_the_run(trained, tmp_path, name, quantize):
    _needs_onnx()
    workdir = _copy(trained, tmp_path)
    stains = ((0.6, 0.2, 0.0), (0.2, 0.6, 0.1), (0.0, 0.1, 0.4))
    look = Appearance((200.0, 210.0, 220.0), (250.0, 230.0, 200.0), 1.25, stains)
    site = Site(("ig", "monocyte", "platelet"), tuple(np.linspace(0.5, 2, 8)), look)
    site.write(workdir)
    out = tmp_path / f"a.{name}"
    # It compares the probabilities with the classifier's, and refuses to write others.
    metadata = exporter.export_run(workdir, name, out, quantize=quantize)
    assert metadata["site"] == json.loads((workdir / "site.json").read_text())
    with np.load(f"{out}{companions.VECTORS}", allow_pickle=False) as vectors:
        assert (vectors["probabilities"][:, [0, 1, 2, 4, 6]] == 0).all()
        assert set(vectors["probabilities"].argmax(axis=1)) <= {3, 5, 7}
    assert _check(tmp_path / f"a.{name}{companions.SCRIPT}").returncode == 0


@pytest.mark.full
def test_the_calibration_stays_in_float32(trained, tmp_path):
    """A scale and a bias of each class are a product and a sum, as layers are."""
    _needs_onnx()
    import onnx

    workdir = _copy(trained, tmp_path)
    fitted = Calibration("vector", 1.0, bias=(0.1, -0.2) * 4, scale=(1.1, 0.9) * 4)
    calibration.write(workdir, {"default": fitted, "none": fitted}, {"tta": "none"})
    exporter.export_run(workdir, "onnx", tmp_path / "a.onnx", quantize="int8")
    kinds = [node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node]
    assert "QuantizeLinear" in kinds
    after = kinds[kinds.index("Log") :]
    assert "Mul" in after
    assert "QuantizeLinear" not in after


@pytest.mark.full
def test_views_and_8_bits(trained, tmp_path):
    _needs_onnx()
    out = tmp_path / "small.onnx"
    metadata = exporter.export_run(trained, "onnx", out, quantize="int8", tta="flip")
    assert metadata["views"] == ["image", "flip_left_right", "flip_up_down", "rotate_180"]
    assert 0 <= metadata["accuracy_int8"] <= 1
    assert abs(metadata["accuracy_int8"] - metadata["accuracy_float32"]) < 0.2
    from bloodjax.exporting import onnx_file

    assert onnx_file.operators(out.read_bytes())["QuantizeLinear"] > 5
    assert _check(tmp_path / f"small.onnx{companions.SCRIPT}").returncode == 0


@pytest.mark.parametrize(
    ("name", "file", "options", "message"),
    [
        ("tflite", "a.onnx", {}, "--format=tflite: "),
        ("onnxx", "a.onnx", {}, "--format=onnxx: did you mean onnx"),
        ("onnx", "a.stablehlo", {}, "a.stablehlo: expected FILE.onnx for --format=onnx"),
        ("onnx", "no/a.onnx", {}, "there is no folder"),
        ("onnx", "there.onnx", {}, "there.onnx exists, expected a new name"),
        ("onnx", "beside.onnx", {}, "beside.onnx.json exists, expected a new name"),
        ("onnx", "a.onnx", {"quantize": "int4"}, "--quantize=int4: "),
        ("stablehlo", "a.stablehlo", {"quantize": "int8"}, "expected --format=onnx, not stablehlo"),
    ],
)
def test_a_wrong_flag_is_one_line_before_anything_is_read(tmp_path, name, file, options, message):
    _needs_onnx()
    for existing in ("there.onnx", "beside.onnx.json"):
        (tmp_path / existing).write_text("mine")
    with pytest.raises(UserError, match=message) as error:
        exporter.export_run(tmp_path / "nowhere", name, tmp_path / file, **options)
    assert "\n" not in str(error.value)
    assert {p.read_text() for p in tmp_path.iterdir()} == {"mine"}


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    find, gone = importlib.util.find_spec, ("onnxruntime", "flatbuffers")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in gone else find(name)
    )
    for name, package in zip(("onnx", "stablehlo"), gone, strict=True):
        message = (
            rf"--format={name}: .*{package} missing, expected pip install 'bloodjax\[export\]'"
        )
        with pytest.raises(UserError, match=message):
            exporter.check(name, tmp_path / f"a.{name}", "none")


@pytest.mark.full
def test_an_older_run_without_calibration_needs_a_flag(trained, tmp_path):
    workdir = _copy(trained, tmp_path)
    (workdir / "calibration.json").unlink()
    out = tmp_path / "a.stablehlo"
    with pytest.raises(UserError, match=r"no calibration; expected one, .* --calibrate` fits, or"):
        exporter.export_run(workdir, "stablehlo", out)
    assert not list(tmp_path.glob("a.*"))
    metadata = exporter.export_run(workdir, "stablehlo", out, calibrated=False)
    assert metadata["calibration"]["method"] == "none"


@pytest.mark.full
def test_a_run_without_validation_is_checked_on_test(trained, tmp_path):
    workdir = _copy(trained, tmp_path)
    splits = json.loads((workdir / "splits.json").read_text())
    for part in (splits["parts"], splits["sources"], splits["pixels"]):
        del part["validation"]
    (workdir / "splits.json").write_text(json.dumps(splits))
    assert bundle_lib.collect(workdir).checked_on == "test"


@pytest.mark.full
def test_a_file_that_answers_differently_is_not_written(trained, tmp_path, monkeypatch):
    def wrong(content):
        return lambda images: np.full((len(images), 8), 0.125, np.float32)

    monkeypatch.setattr(stablehlo, "runner", wrong)
    with pytest.raises(UserError, match=r"differ from the run's by .* nothing was written"):
        exporter.export_run(trained, "stablehlo", tmp_path / "a.stablehlo")
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_a_network_that_cannot_be_exported_is_one_line(trained, tmp_path, monkeypatch):
    _needs_onnx()

    def refuse(*_):
        raise graph.UnsupportedError("the operation sort")

    monkeypatch.setattr(tracing, "trace", refuse)
    with pytest.raises(UserError, match="simple_cnn as onnx: the operation sort has no ONNX form"):
        exporter.export_run(trained, "onnx", tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def _bundle():
    model = object.__new__(classifier.Classifier)
    model.classes = ("a", "b")
    pixels, answers = np.zeros((1, 4, 4, 3), np.uint8), np.ones((1, 2), np.float32)
    return Bundle(
        classifier=model,
        views=TTAConfig(),
        tta="none",
        calibration=Calibration(),
        weights=Weights("", "", ""),
        checked_on="validation",
        images=pixels,
        labels=np.zeros(1, int),
        vectors=Vectors(pixels, answers, pixels, answers),
        metrics={},
    )


def test_no_file_is_left_after_an_error(tmp_path, monkeypatch):
    written = []

    def fails_at_the_third(path, content):
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device", str(path))
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    monkeypatch.setattr(companions.files, "atomic_write", fails_at_the_third)
    with pytest.raises(OSError, match="No space left"):
        companions.write(tmp_path / "a.onnx", b"x", "onnx", _bundle(), {})
    assert len(written) == 3
    assert not list(tmp_path.iterdir())


def test_calibration_in_jax_equals_the_one_of_the_run():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(4, 0.2), 50).astype(np.float32)
    probabilities[0] = [1, 0, 0, 0]
    for one in (
        Calibration("temperature", 0.4),
        Calibration("vector", 1.7, (0.1, 0.2, -0.3, 0.0), (1.0, 1.2, 0.8, 1.0)),
        Calibration(),
    ):
        found = jax.jit(lambda p, c=one: function.calibrated(p, c))(probabilities)
        np.testing.assert_allclose(found, one.apply(probabilities), atol=1e-6)


def _copy(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    return workdir
