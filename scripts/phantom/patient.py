"""Who is scanned, and how, before a grid is chosen?"""

from dataclasses import dataclass

import numpy as np

from scripts.phantom.gut import draw_gut, draw_stomach
from scripts.phantom.limbs import Limb
from scripts.phantom.liver import Liver, Tumour, draw_liver, draw_liver_vessels, draw_tumours
from scripts.phantom.organs import draw_chest_and_pelvis, draw_retroperitoneum
from scripts.phantom.randomness import SmoothField, uniform
from scripts.phantom.shapes import Ellipsoid, bend, tube
from scripts.phantom.tissues import PHASE_PROBABILITIES, PHASES, Part, draw_hu
from scripts.phantom.trunk import Trunk, draw_trunk


@dataclass(frozen=True)
class Findings:
    """What only some patients have (0 or False where not), and how uneven the HU are."""

    arms_down: bool
    breasts_mm: float
    ascites_mm: float
    effusion_mm: float
    shading_hu: float
    liver_texture_hu: float
    crowding: float = -np.inf  # bowel fills the free cavity where a normal variable of this mean is above 0
    liver_kind: str = "usual"
    lining_mm: float = 0.0  # of muscle on the inner face of the wall, in places up to twice that
    marbling_hu: float = 0.0  # by which fat in the muscles of the wall lowers them, in places up to twice that
    sheath_mm: float = 0.0  # of fat between the liver and what lies beside it, in places up to twice that, in some none


@dataclass(frozen=True)
class Table:
    """The couch: a shell that curves up to the sides, hollow, with a floor."""

    present: bool
    gap_mm: float
    curvature_per_mm: float
    hollow_mm: float


@dataclass(frozen=True)
class Scan:
    """How the patient is scanned, as far as a grid does not say it."""

    field_of_view: float  # relative to the body's width
    length_mm: float
    height: float  # of the middle of the scan, -0.5 to 0.5 of the way that leaves the liver in it
    cut: float  # -1 to 1: how far beyond that, 0 in most
    noise_hu: float
    streaks: float  # relative to the noise
    grain_mm: float
    blur_mm: float
    blur_slices: float


@dataclass(frozen=True)
class WideScan:
    """How the patient is scanned, lengths in body millimetres before the patient's scale."""

    view: str
    low_mm: float
    high_mm: float
    field_of_view: tuple[float, float]  # relative to the body's width and depth
    off_centre_mm: tuple[float, float]
    thickness_mm: float
    increment: float  # of the slices, relative to their thickness
    blur_mm: float
    sharpening: float
    noise_hu: float
    grain_mm: float
    streaks: float  # relative to the noise
    bands_hu: float  # dark bands between dense bones
    metal: tuple[tuple[float, float, float], ...]  # where there is some, as shares of the grid
    circle_hu: float | None  # outside the reconstructed circle
    gain: float  # of the scanner's calibration, over HU + 1000
    offset_hu: float


@dataclass(frozen=True)
class Patient:
    """All that was drawn of one patient, before any grid."""

    phase: str
    hu: dict[str, float]
    trunk: Trunk
    liver: Liver
    behind_liver: tuple[Part, ...]  # painted in this order, the liver over them
    vessels: tuple[Part, ...]  # in the liver
    tumours: tuple[Tumour, ...]
    after_liver: tuple[Part, ...]
    fields: dict[str, SmoothField]
    warp_mm: float
    scale: tuple[float, float, float]
    rotation: np.ndarray  # (3, 3), body to scanner
    shift_mm: tuple[float, float, float]
    findings: Findings
    table: Table
    scan: Scan | WideScan
    limbs: tuple[Limb, ...] = ()
    beside_liver: tuple[Part, ...] = ()  # painted before the liver, with no fat between


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw everything that is known of a patient and their scan before a grid is chosen."""
    phase = str(rng.choice(PHASES, p=PHASE_PROBABILITIES))
    hu = draw_hu(rng, phase)
    trunk = draw_trunk(rng)
    width, depth = trunk.cavity_half_mm
    deep, cava, aorta, right_kidney = draw_retroperitoneum(rng, trunk, hu)
    liver, gallbladder = draw_liver(rng, trunk, cava + aorta, right_kidney)
    spleen = Ellipsoid(
        (rng.uniform(0.62, 0.72) * width, rng.uniform(-0.5, -0.3) * depth, rng.uniform(-72, -52)),
        uniform(rng, (26, 40), (44, 62), (40, 66)),
        rng.uniform(-35, -8),
        rng.uniform(-10, 15),
    )
    behind = [
        *draw_chest_and_pelvis(rng, trunk, hu),
        *draw_gut(rng, trunk, hu),
        *draw_stomach(rng, trunk, hu),
        Part((spleen,), hu["spleen"], texture_hu=4.0, roughness_mm=2.0),
        *deep,
    ]
    if gallbladder:
        behind.append(Part(tuple(gallbladder), hu["bile"], wall_mm=1.5, wall_hu=hu["muscle"]))
        if rng.random() < 0.15:
            stone = Ellipsoid(gallbladder[-1].start, (rng.uniform(3, 8),) * 3)
            behind.append(Part((stone,), rng.uniform(60, 500), texture_hu=40.0))
    trunk_of_portal = bend([(0, 4, -112), (-12, 8, -102), liver.hilum], 3)
    duct = bend([np.add(liver.hilum, (-4, 6, 2)), (-24, 8, -108), (-34, -2, -135)], 3)
    after = [
        Part(tube(trunk_of_portal, rng.uniform(5.5, 7.5)), hu["portal"]),
        Part(tube(duct, rng.uniform(2, 4)), hu["bile"]),
    ]
    angles = np.deg2rad(rng.normal(0, (2.5, 2.5, 4)))
    return Patient(
        phase=phase,
        hu=hu,
        trunk=trunk,
        liver=liver,
        behind_liver=tuple(behind),
        vessels=tuple(draw_liver_vessels(rng, trunk, liver, cava, hu)),
        tumours=draw_tumours(rng, trunk, liver, phase),
        after_liver=tuple(after),
        fields={
            **{f"warp_{axis}": SmoothField.draw(rng, 70.0, 12) for axis in "xyz"},
            "shading": SmoothField.draw(rng, 90.0, 10),
            "waves": SmoothField.draw(rng, 20.0, 30),
            "strands_a": SmoothField.draw(rng, 15.0, 36),
            "strands_b": SmoothField.draw(rng, 15.0, 36),
            "grain": SmoothField.draw(rng, 5.0, 56),
        },
        warp_mm=rng.uniform(2.5, 6),
        scale=tuple((rng.uniform(0.94, 1.1) * rng.uniform(0.96, 1.04, 3)).tolist()),
        rotation=turn_by(angles),
        shift_mm=uniform(rng, (-25, 25), (-35, 35), (-300, 300)),
        findings=Findings(
            arms_down=bool(rng.random() < 0.22),
            breasts_mm=rng.uniform(10, 38) if rng.random() < 0.4 else 0.0,
            ascites_mm=rng.uniform(3, 12) if rng.random() < 0.08 else 0.0,
            effusion_mm=rng.uniform(10, 45) if rng.random() < 0.1 else 0.0,
            shading_hu=rng.uniform(2, 7),
            liver_texture_hu=rng.uniform(1, 6),
        ),
        table=Table(
            present=bool(rng.random() < 0.9),
            gap_mm=rng.uniform(2, 14),
            curvature_per_mm=rng.uniform(2e-4, 1.6e-3),
            hollow_mm=rng.uniform(8, 30),
        ),
        scan=Scan(
            field_of_view=rng.uniform(1.0, 1.16) if rng.random() < 0.8 else rng.uniform(0.93, 1.0),
            length_mm=rng.uniform(150, 350),
            height=rng.beta(1.6, 1.3) - 0.5,
            cut=rng.uniform(-1, 1) if rng.random() < 0.15 else 0.0,
            noise_hu=float(np.exp(rng.uniform(np.log(7), np.log(26)))),
            streaks=rng.uniform(0, 0.5),
            grain_mm=rng.uniform(0.45, 1.1),
            blur_mm=rng.uniform(0.2, 0.8),
            blur_slices=rng.uniform(0.3, 0.65),
        ),
    )


def turn_by(angles: np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3) about x, then y, then z, by ``angles`` in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix
