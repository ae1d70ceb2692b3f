import pytest

from bloodjax.data.formats import layout
from bloodjax.data.reading import LeftOut
from bloodjax.errors import UserError


def find(*files, folders=(), stated=layout.AUTO):
    parents = {file.rsplit("/", n)[0] for file in files for n in range(1, file.count("/") + 1)}
    return layout.find("cells", files, parents | set(folders), stated)


def images(*folders, n=2):
    return [f"{folder}/{i}.png" for folder in folders for i in range(n)]


BCCD = images("images/TRAIN/EOSINOPHIL", "images/TEST/EOSINOPHIL", "images/TEST_SIMPLE/EOSINOPHIL")
BCCD += images("images/TRAIN/NEUTROPHIL", "images/TEST/NEUTROPHIL", "images/TEST_SIMPLE/NEUTROPHIL")
RAABIN = [f"{split}/{cell}" for split in ("Train", "TestA", "Test-B") for cell in ("Baso", "Eosi")]
C_NMC = [f"fold_{i}/{cell}" for i in range(3) for cell in ("all", "hem")]


@pytest.mark.parametrize("top", ["", "dataset2-master/dataset2-master/"])
def test_bccd_as_on_kaggle(top):
    files = [top + file for file in BCCD]
    found = find(*files, f"{top}labels.csv", "README.md")
    assert found.classes == {"EOSINOPHIL", "NEUTROPHIL"}
    assert found.names == tuple(sorted(files))
    assert set(found.splits) == {"train", "test", "test_simple"}
    assert found.description == "split and class folders"
    assert "more splits: test_simple" in found.details


def test_raabin_wbc():
    found = find(*images(*RAABIN))
    assert found.classes == {"Baso", "Eosi"}
    split = dict(zip(found.names, found.splits, strict=True))
    assert split["Train/Baso/0.png"] == "train"
    assert split["TestA/Eosi/1.png"] == "test"
    assert split["Test-B/Baso/0.png"] == "test_b"
    assert "TestA is test" in found.details


def test_c_nmc_has_folds_that_stay_together():
    found = find(*images(*C_NMC))
    assert found.classes == {"all", "hem"}
    assert found.groups == tuple(name.split("/")[0] for name in found.names)
    assert found.levels == ("group", "class")
    assert "3 groups, from folders such as fold_0" in found.details


def test_c_nmc_as_on_kaggle():
    folders = [f"C-NMC_Leukemia/training_data/{folder}" for folder in C_NMC]
    test = images("C-NMC_Leukemia/testing_data/C-NMC_test_final_phase_data", n=3)
    table = "C-NMC_Leukemia/validation_data/C-NMC_test_prelim_phase_data_labels.csv"
    prelim = images("C-NMC_Leukemia/validation_data/C-NMC_test_prelim_phase_data", n=4)
    found = find(*images(*folders), *test, *prelim, table)
    assert found.classes == {"all", "hem"}
    assert set(found.splits) == {"train"}
    assert len(set(found.groups)) == 3
    assert found.left_out == (
        LeftOut("without a class, in testing_data", "", 3),
        LeftOut("without a class, in validation_data", "", 4),
    )


@pytest.mark.parametrize(
    "key", ["patient_{}", "P{:03}", "{}", "2024-01-0{}", "slide {} b", "Slide {}"]
)
def test_a_folder_for_each_patient_within_the_class(key):
    folders = [f"{name}/{key.format(i)}" for name in ("AML", "healthy") for i in (1, 2)]
    found = find(*images(*folders))
    assert found.classes == {"AML", "healthy"}
    # A patient who has cells of two classes is one group.
    assert set(found.groups) == {key.format(1), key.format(2)}
    assert found.description == "class and group folders"


@pytest.mark.parametrize("key", ["patient_{}", "Donor{}", "SITE {}", "lab-{}"])
def test_a_letter_numbers_patients_too(key):
    folders = [f"grade{i}/{key.format(letter)}" for i, letter in ((1, "A"), (1, "B"), (2, "C"))]
    found = find(*images(*folders))
    assert found.classes == {"grade1", "grade2"}
    assert set(found.groups) == {key.format(letter) for letter in "ABC"}
    plural = find(*images("patient1/labs", "patient1/runs", "patient2/labs"))
    assert plural.classes == {"labs", "runs"}


def test_a_folder_for_each_patient_with_class_folders_in_it():
    found = find(*images("patient1/a", "patient1/b", "patient2/a", "patient3/b"))
    assert found.classes == {"a", "b"}
    assert set(found.groups) == {"patient1", "patient2", "patient3"}


def test_patients_and_slides_within_split_and_class():
    folders = ("train/M1/p1/slide1", "train/M2/p2/slide1", "val/M1/p3/slide2", "val/M2/p4/slide1")
    found = find(*images(*folders))
    assert found.classes == {"M1", "M2"}
    assert set(found.groups) == {"p1", "p2", "p3", "p4"}
    assert set(found.splits) == {"train", "val"}


def test_whole_numbers_can_be_classes_of_patients():
    found = find(*images("0/p1", "1/p1", "11/p2"))
    assert found.classes == {"0", "1", "11"}
    assert set(found.groups) == {"p1", "p2"}


@pytest.mark.parametrize(
    "folders",
    [
        ("original/benign", "original/malignant", "segmented/benign", "segmented/malignant"),
        ("granulocyte/neutrophil", "granulocyte/eosinophil", "agranulocyte/lymphocyte"),
        ("0/1", "0/2", "1/1"),
        ("CD4/101", "CD8/102"),
    ],
)
def test_two_meanings_are_an_error_that_says_how_to_choose(folders):
    with pytest.raises(UserError, match="layout=class/group or group/class") as caught:
        find(*images(*folders))
    assert str(caught.value).startswith("cells: ")
    outer = find(*images(*folders), stated="class/other")
    assert outer.classes == {folder.split("/")[0] for folder in folders}
    assert set(outer.groups) == {""}
    inner = find(*images(*folders), stated="group/class")
    assert inner.classes == {folder.split("/")[1] for folder in folders}


def test_a_wrong_guess_can_be_overruled():
    files = images("train/a", "test/a", "train/b")
    assert find(*files).classes == {"a", "b"}
    stated = find(*files, stated="class")
    assert stated.classes == {"train", "test"}
    assert set(stated.splits) == {""}


def test_a_stated_layout_looks_through_a_folder_around_everything():
    found = find(*images("x/y/control/one", "x/y/test/two"), "x/notes.txt", stated="class/group")
    assert found.classes == {"control", "test"}
    assert set(found.groups) == {"one", "two"}
    with pytest.raises(UserError, match=r"x/0.png is out of place"):
        find(*images("x", "x/y/z"), stated="class/group")


@pytest.mark.parametrize("flat", ["unlabelled", "test", "no_label", "extra"])
def test_a_flat_folder_beside_splits_is_left_out(flat):
    found = find(*images("train/a", "train/b", "val/a"), *images(flat, n=5), f"{flat}/notes.txt")
    assert set(found.splits) == {"train", "val"}
    assert found.left_out == (LeftOut(f"without a class, in {flat}", "", 5),)


def test_unlabelled_images_may_lie_deeper():
    found = find(*images("train/a", "train/b", "unlabelled/slide1", "unlabelled/slide2"))
    assert found.classes == {"a", "b"}
    assert found.left_out == (LeftOut("without a class, in unlabelled", "", 4),)


def test_images_without_a_suffix_are_counted_too():
    found = find(*images("train/a", "train/b"), "pool/1", "pool/2", "pool/notes.txt")
    assert found.left_out == (LeftOut("without a class, in pool", "", 2),)


@pytest.mark.parametrize(
    "name", ["train_data", "Training set", "TRAIN", "train-images", "01_train", "train80"]
)
def test_names_of_splits(name):
    found = find(*images(f"{name}/a", f"{name}/b", "dev/a"))
    assert set(found.splits) == {"train", "val"}


def test_splits_within_the_classes():
    found = find(*images("a/train", "a/test", "b/train", "b/val"))
    assert found.classes == {"a", "b"}
    assert set(found.splits) == {"train", "test", "val"}


def test_files_beside_the_one_folder_do_not_hide_it():
    found = find(*images("my cells/a", "my cells/b"), "README.md", "LICENSE", "labels.csv")
    assert found.classes == {"a", "b"}


def test_a_folder_of_tables_is_no_class():
    found = find(*images("a", "b"), "annotations/1.xml", "annotations/2.xml", "docs/x/y.pdf")
    assert found.classes == {"a", "b"}
    assert found.left_out == (LeftOut(layout.NO_IMAGES, "", 3),)


def test_a_folder_of_a_table_of_groups_is_no_class():
    files = [*images("x/a", "x/b"), "x/meta/groups.csv", "x/a/groups.csv"]
    folders = {"x", "x/a", "x/b", "x/meta", "x/empty"}
    tables = [file for file in files if file.endswith("csv")]
    found = layout.find("cells", files, folders, tables=tables)
    assert found.classes == {"a", "b", "empty"}
    assert found.root == "x/"


@pytest.mark.parametrize(
    ("files", "first"),
    [
        (["a/1.png", "2.png"], "2.png"),
        (["a/1.png", "b/masks/2.png"], "b/masks/2.png"),
        (["train/1.png"], "train/1.png"),
        (["train/a/1.png", "train/2.png"], "train/2.png"),
        (["train/a/1.png", "other/b/2.png"], "other/b/2.png"),
    ],
)
def test_an_image_out_of_place_is_named(files, first):
    with pytest.raises(UserError, match=f"^cells: {first} is out of place, expected <class>"):
        find(*files)


def test_layouts_that_can_be_stated():
    valid = [
        "auto",
        "class",
        "split/class",
        "group/class",
        "class/other/other",
        "split/class/group",
    ]
    assert all(map(layout.is_valid, valid))
    wrong = ["", "group", "class/class", "split", "classes", "class/", "other/other", "/class"]
    assert not any(map(layout.is_valid, wrong))
