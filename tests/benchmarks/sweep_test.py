import zipfile

from benchmarks import sweep


def test_a_part_has_each_class_in_its_share(tmp_path):
    counts = {"train/a": 60, "train/b": 30, "train/c": 10}
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for folder, count in counts.items():
            for i in range(count):
                archive.writestr(f"{folder}/{i:03}.png", f"{folder}{i}")
    assert sweep.write_part(tmp_path / "all.zip", tmp_path / "part.zip", 20) == 20
    with zipfile.ZipFile(tmp_path / "part.zip") as part:
        names = part.namelist()
        assert part.read("train/c/004.png") == b"train/c4"
    found = {folder: sum(name.startswith(folder) for name in names) for folder in counts}
    assert found == {"train/a": 12, "train/b": 6, "train/c": 2}


def test_the_summary_has_both_trials():
    result = {"trial": 7, "accuracy": 0.95, "ci95": [0.94, 0.96], "nll": 0.125, "n": 1712}
    assert sweep.summary({"best": result}) == (
        "best trial (7): test accuracy 0.9500 (0.9400 to 0.9600), log loss 0.1250, n = 1,712"
    )
    lines = sweep.summary({"best": result, "own": {**result, "trial": 0}}).splitlines()
    assert lines[1].startswith("own values (0): test accuracy 0.9500")
