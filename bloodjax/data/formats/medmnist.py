"""The class names of MedMNIST's two-dimensional sets, by the names of their files.

The files themselves name no classes. The names, the channels and the kinds of labels are those of
`medmnist.INFO` of the package medmnist 3.0 (Yang et al., "MedMNIST v2 - A large-scale lightweight
benchmark for 2D and 3D biomedical image classification", 2023, https://doi.org/10.5281/zenodo.10519652).
"""

from __future__ import annotations

import dataclasses
import pathlib
import re

# The label order of BloodMNIST and of the AN2DL challenge. `medmnist.INFO` spells the fourth class
# out: "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)".
BLOOD_CELLS = (
    *("basophil", "eosinophil", "erythroblast", "ig"),
    *("lymphocyte", "monocyte", "neutrophil", "platelet"),
)
# Of OrganAMNIST, OrganCMNIST and OrganSMNIST.
_ORGANS = (
    *("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right"),
    *("liver", "lung-left", "lung-right", "pancreas", "spleen"),
)
# MedMNIST's own files: SET.npz has 28 pixels a side, SET_64.npz and so on have others.
_FILE = re.compile(r"([a-z]+mnist)(?:_(?:28|64|128|224))?")


@dataclasses.dataclass(frozen=True)
class MedMNISTSet:
    """What is known of a set besides its file.

    Attributes:
      classes: Class names in label order.
      is_grey: Whether the images have no channels.
      is_multi_label: Whether an image can have several labels, or none.
    """

    classes: tuple[str, ...]
    is_grey: bool
    is_multi_label: bool = False


SETS = {
    "pathmnist": MedMNISTSet(
        (
            *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle"),
            *("normal colon mucosa", "cancer-associated stroma"),
            "colorectal adenocarcinoma epithelium",
        ),
        is_grey=False,
    ),
    "chestmnist": MedMNISTSet(
        (
            *("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule"),
            *("pneumonia", "pneumothorax", "consolidation", "edema", "emphysema", "fibrosis"),
            *("pleural", "hernia"),
        ),
        is_grey=True,
        is_multi_label=True,
    ),
    "dermamnist": MedMNISTSet(
        (
            "actinic keratoses and intraepithelial carcinoma",
            *("basal cell carcinoma", "benign keratosis-like lesions", "dermatofibroma"),
            *("melanoma", "melanocytic nevi", "vascular lesions"),
        ),
        is_grey=False,
    ),
    "octmnist": MedMNISTSet(
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        is_grey=True,
    ),
    "pneumoniamnist": MedMNISTSet(("normal", "pneumonia"), is_grey=True),
    "retinamnist": MedMNISTSet(("0", "1", "2", "3", "4"), is_grey=False),
    "breastmnist": MedMNISTSet(("malignant", "normal, benign"), is_grey=True),
    "bloodmnist": MedMNISTSet(BLOOD_CELLS, is_grey=False),
    "tissuemnist": MedMNISTSet(
        (
            *("Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule"),
            *("Glomerular endothelial cells", "Interstitial endothelial cells", "Leukocytes"),
            *("Podocytes", "Proximal Tubule Segments", "Thick Ascending Limb"),
        ),
        is_grey=True,
    ),
    "organamnist": MedMNISTSet(_ORGANS, is_grey=True),
    "organcmnist": MedMNISTSet(_ORGANS, is_grey=True),
    "organsmnist": MedMNISTSet(_ORGANS, is_grey=True),
}


def find(path: pathlib.Path) -> MedMNISTSet | None:
    """The set whose file has the name of `path`, such as chestmnist_64.npz; None for any other."""
    match = _FILE.fullmatch(path.stem.lower())
    return SETS.get(match[1]) if match else None
