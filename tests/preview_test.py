import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

SHEET = [sys.executable, "-m", "bloodjax.preview", "--config=configs/quickstart.py"]


@pytest.mark.full
def test_a_sheet_has_a_row_a_class(make_config):
    from bloodjax import preview

    config = make_config(augment="d4|randaugment|mixup(p=0.5)|cutmix(p=0.5)")
    image = np.asarray(Image.open(io.BytesIO(preview.render_sheet(config, 3))))
    height, width = image.shape[:2]
    assert height / 8 > 100
    assert width / 4 > 100
    assert preview.render_sheet(config, 3) == preview.render_sheet(config, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out=sheet.gif"], "--out=sheet.gif: expected a name that ends in .png"),
        (
            ["--out=sheet.png", "--config.augment=rotat"],
            "config.augment: unknown operation 'rotat'",
        ),
        ([], "--out is missing"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    done = subprocess.run([*SHEET, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_cannot_be_drawn_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "folder.png"
    folder.mkdir()
    done = subprocess.run([*SHEET, f"--out={folder}"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {folder}: is a folder, expected a file to write\n"
    arguments = [f"--out={tmp_path / 'new' / 'sheet.png'}", "--config.data.train=missing.zip"]
    done = subprocess.run([*SHEET, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert [*tmp_path.iterdir()] == [folder]
