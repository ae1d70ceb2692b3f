"""Appearance of each kind of blood cell in a stained film, as ranges of random parameters.

The structures are those that a haematologist looks at: lobes of the nucleus, its size relative to
the cell, granules, vacuoles. Ranges of colour and size overlap between kinds on purpose.

Lengths are in units of half the image: an image spans -1..1 in both directions.
"""

from __future__ import annotations

import dataclasses

Range = tuple[float, float]

# Optical density of one unit of each dye in red, green and blue light, after films stained with
# May-Gruenwald-Giemsa.
STAINS = {
    "chromatin": (1.35, 2.00, 0.62),
    "azure": (0.60, 1.05, 0.35),
    "blue": (0.58, 0.55, 0.20),
    "eosin": (0.20, 0.72, 0.62),
    "haemoglobin": (0.22, 0.34, 0.25),
}


@dataclasses.dataclass(frozen=True)
class Morphology:
    """The structure of one kind of cell; a `Range` is sampled uniformly for each cell.

    Attributes:
      radius: Radius of the cell, in units of half the image.
      lobes: Fewest and most lobes of the nucleus; (0, 0) for a cell without a nucleus.
      lobe: Radius of a lobe. This and the lengths below are in units of the cell's radius.
      arc: Radius of the arc on which the centres of the lobes are.
      span: Angle between the first and the last lobe, in radians.
      bridge: Thickness of the strands between lobes, in units of the lobes' radius.
      offset: Distance of the nucleus from the centre of the cell.
      density: Amount of chromatin.
      rough: Standard deviation of the outline from an ellipse.
      cytoplasm: Stain -> amount in the cytoplasm.
      granule: Stain of the granules.
      granules: Amount of that stain.
      grain: Size of a granule, in units of half the image.
      sparse: Standard deviations by which the texture must exceed its mean to be a granule.
      covered: Whether granules also cover the nucleus.
      vacuoles: Most vacuoles in the cytoplasm.
    """

    radius: Range
    lobes: tuple[int, int] = (1, 1)
    lobe: Range = (0.5, 0.6)
    arc: Range = (0.0, 0.0)
    span: Range = (0.0, 0.0)
    bridge: Range = (0.2, 0.3)
    offset: Range = (0.0, 0.0)
    density: Range = (0.75, 1.1)
    rough: float = 0.035
    cytoplasm: dict[str, Range] = dataclasses.field(default_factory=dict)
    granule: str = "azure"
    granules: Range = (0.0, 0.0)
    grain: float = 0.02
    sparse: Range = (0.8, 1.2)
    covered: bool = False
    vacuoles: int = 0


KINDS = {
    "basophil": Morphology(
        radius=(0.48, 0.72),
        lobes=(2, 3),
        lobe=(0.36, 0.46),
        arc=(0.25, 0.4),
        span=(1.8, 3.4),
        bridge=(0.5, 0.9),
        density=(0.55, 0.85),
        cytoplasm={"blue": (0.1, 0.5), "azure": (0.2, 0.5), "eosin": (0.0, 0.3)},
        granule="chromatin",
        granules=(0.8, 1.2),
        grain=0.024,
        sparse=(0.1, 0.6),
        covered=True,
    ),
    "eosinophil": Morphology(
        radius=(0.52, 0.78),
        lobes=(2, 2),
        lobe=(0.37, 0.44),
        arc=(0.42, 0.50),
        span=(2.3, 3.1),
        bridge=(0.15, 0.4),
        offset=(0.0, 0.25),
        cytoplasm={"eosin": (0.3, 0.7), "azure": (0.0, 0.15), "blue": (0.0, 0.2)},
        granule="eosin",
        granules=(0.6, 1.0),
        grain=0.027,
        sparse=(-0.1, 0.4),
    ),
    "erythroblast": Morphology(
        radius=(0.38, 0.58),
        lobe=(0.46, 0.58),
        offset=(0.0, 0.25),
        density=(1.0, 1.4),
        cytoplasm={"blue": (0.2, 0.8), "haemoglobin": (0.3, 0.9)},
    ),
    "ig": Morphology(
        radius=(0.56, 0.82),
        lobes=(2, 3),
        lobe=(0.46, 0.54),
        arc=(0.25, 0.35),
        span=(0.8, 1.8),
        bridge=(0.8, 1.0),
        offset=(0.18, 0.34),
        cytoplasm={"blue": (0.1, 0.6), "azure": (0.0, 0.3), "eosin": (0.0, 0.3)},
        granules=(0.6, 1.1),
        grain=0.018,
        sparse=(0.3, 0.8),
    ),
    "lymphocyte": Morphology(
        radius=(0.40, 0.60),
        lobe=(0.76, 0.88),
        offset=(0.0, 0.15),
        rough=0.05,
        cytoplasm={"blue": (0.5, 1.2)},
    ),
    "monocyte": Morphology(
        radius=(0.60, 0.86),
        lobes=(4, 5),
        lobe=(0.27, 0.36),
        arc=(0.36, 0.46),
        span=(2.7, 4.2),
        bridge=(0.85, 1.0),
        offset=(0.0, 0.1),
        density=(0.65, 1.0),
        rough=0.055,
        cytoplasm={"blue": (0.5, 1.1), "azure": (0.0, 0.2)},
        granules=(0.0, 0.2),
        vacuoles=8,
    ),
    "neutrophil": Morphology(
        radius=(0.50, 0.76),
        lobes=(3, 5),
        lobe=(0.23, 0.29),
        arc=(0.36, 0.56),
        span=(3.2, 4.4),
        bridge=(0.15, 0.35),
        cytoplasm={"eosin": (0.05, 0.4), "azure": (0.0, 0.25), "haemoglobin": (0.0, 0.4)},
        granules=(0.15, 0.45),
        grain=0.014,
        sparse=(0.5, 1.2),
    ),
    "platelet": Morphology(
        radius=(0.16, 0.34),
        lobes=(0, 0),
        rough=0.11,
        cytoplasm={"blue": (0.2, 0.7), "azure": (0.2, 0.5)},
        granules=(0.4, 1.0),
        grain=0.022,
        sparse=(-0.2, 0.6),
    ),
}
