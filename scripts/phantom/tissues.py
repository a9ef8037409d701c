"""What is the body made of: how many HU has each tissue, and what describes a piece of it?"""

from dataclasses import dataclass

import numpy as np

from scripts.phantom.shapes import Shape

PHASES = ("native", "arterial", "portal", "late")
PHASE_PROBABILITIES = (0.2, 0.18, 0.44, 0.18)
PHASE_RANGES_HU = {  # in the order of PHASES
    "liver": ((46, 68), (58, 88), (88, 128), (78, 112)),
    "spleen_minus_liver": ((-12, 2), (8, 45), (-8, 16), (-8, 10)),
    "kidney": ((26, 40), (100, 160), (140, 210), (120, 180)),
    "cortex_minus_kidney": ((0, 1), (40, 90), (0, 30), (0, 8)),
    "aorta": ((32, 48), (200, 340), (125, 185), (95, 135)),
    "cava": ((32, 48), (50, 110), (100, 165), (95, 130)),
    "portal_minus_liver": ((-22, -6), (-8, 40), (25, 60), (8, 28)),
    "hepatic_minus_liver": ((-22, -6), (-14, 4), (15, 50), (8, 26)),
    "pancreas": ((32, 46), (75, 120), (75, 110), (65, 90)),
    "gut_wall": ((35, 50), (60, 110), (75, 120), (70, 100)),
    "muscle": ((48, 66), (50, 70), (54, 80), (54, 76)),
    "heart_wall": ((40, 52), (75, 115), (90, 125), (85, 110)),
}
MOST_FAT_HU = 55  # a fatty liver is darker than any other of its phase by at most; it takes up contrast agent too


@dataclass(frozen=True)
class Part:
    """Something to paint: the union of ``shapes`` filled with one material.

    Attributes:
        shapes: painted one over the other, all walls before all fillings.
        hu: of the filling.
        texture_hu: standard deviation of the fine texture in the filling.
        roughness_mm: standard deviation of the surface's waviness.
        wall_mm: thickness of the wall, 0 for none.
        wall_hu: of the wall.
        gas_above_mm: the y of the fluid level; the filling above it is gas. None for no gas.
        within: the compartment it is cut to: "body", "cavity", "abdomen", "chest" or "liver".
    """

    shapes: tuple[Shape, ...]
    hu: float
    texture_hu: float = 0.0
    roughness_mm: float = 0.0
    wall_mm: float = 0.0
    wall_hu: float = 0.0
    gas_above_mm: float | None = None
    within: str = "abdomen"


def draw_hu(rng: np.random.Generator, phase: str) -> dict[str, float]:
    hu = {tissue: rng.uniform(*ranges[PHASES.index(phase)]) for tissue, ranges in PHASE_RANGES_HU.items()}
    fatty_drop = rng.uniform(15, MOST_FAT_HU) if rng.random() < 0.15 else 0.0
    hu["spleen"] = hu["liver"] + hu["spleen_minus_liver"]
    hu["liver"] -= fatty_drop
    hu["portal"] = hu["liver"] + fatty_drop + hu["portal_minus_liver"]
    hu["hepatic"] = hu["liver"] + fatty_drop + hu["hepatic_minus_liver"]
    hu["cortex"] = hu["kidney"] + hu["cortex_minus_kidney"]
    hu["fat"] = rng.uniform(-114, -92)
    hu["marrow"] = rng.uniform(80, 180)
    hu["bile"] = rng.uniform(0, 22)
    hu["lung"] = rng.uniform(-890, -780)
    return hu


def draw_wide_hu(rng: np.random.Generator, phase: str) -> dict[str, float]:
    """As `draw_hu`, each tissue about its range; often a fatty liver, or one that is like the spleen or the muscles."""
    hu = draw_hu(rng, phase)
    dose = rng.normal(1, 0.12) if phase != "native" else 1.0
    for tissue in hu:
        spread = {"fat": 5, "lung": 40, "marrow": 50, "bile": 6, "aorta": 15, "cava": 12}.get(tissue, 5)
        blood = hu[tissue] if tissue in ("fat", "lung", "marrow", "bile") else 45 + dose * (hu[tissue] - 45)
        hu[tissue] = float(blood + rng.normal(0, spread))
    fattiest = PHASE_RANGES_HU["liver"][PHASES.index(phase)][0] - MOST_FAT_HU
    kind = rng.random()
    if kind < 0.22:
        hu["liver"] += rng.uniform(0.1, 1) * (fattiest - hu["liver"])
    elif kind < 0.28:
        hu["liver"] += rng.uniform(8, 35)  # iron, amiodarone
    elif kind < 0.48:
        hu["liver"] = hu["spleen"] + rng.normal(0, 4)
    elif kind < 0.58:
        hu["liver"] = hu["muscle"] + rng.normal(0, 6)
    hu["liver"] = float(np.clip(hu["liver"], fattiest, 170))
    if rng.random() < 0.2:  # little contrast between the vessels and the liver
        for vein in ("portal", "hepatic"):
            hu[vein] = hu["liver"] + rng.normal(0, 8)
    if rng.random() < 0.1:
        hu["bile"] = rng.uniform(30, 220)  # sludge, contrast agent
    return hu
