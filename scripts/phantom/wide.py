"""Who is scanned, and how, if patients and scans are to vary as widely as real ones, or wider?

Draws on the same anatomy as `patient`, with wider ranges, and adds what that lacks: the body from head to thighs,
livers of every shape, organs that touch, masses elsewhere that look like liver, all that a scanner does to an image.
"""

from dataclasses import replace

import numpy as np

from scripts.phantom.gut import draw_gut, draw_stomach
from scripts.phantom.limbs import draw_limbs
from scripts.phantom.liver import Liver, Tumour, draw_liver, draw_liver_vessels, draw_tumours
from scripts.phantom.organs import draw_heart, draw_retroperitoneum, draw_whole_pelvis
from scripts.phantom.patient import Findings, Patient, Table, WideScan, turn_by
from scripts.phantom.randomness import SmoothField, uniform
from scripts.phantom.shapes import Capsule, Ellipsoid, bend, tube
from scripts.phantom.tissues import PHASES, Part, draw_wide_hu
from scripts.phantom.trunk import WholeTrunk, draw_whole_trunk

WIDE_PHASE_PROBABILITIES = (0.33, 0.17, 0.35, 0.15)
VIEWS = ("liver", "torso", "slab", "pelvis", "chest", "head")
VIEW_PROBABILITIES = (0.46, 0.18, 0.24, 0.05, 0.035, 0.035)
LIVER_KINDS = ("usual", "small", "large", "long", "right", "left")  # the last two are what a resection has left
LIVER_KIND_PROBABILITIES = (0.66, 0.1, 0.1, 0.06, 0.04, 0.04)


def _draw_view(rng: np.random.Generator, trunk: WholeTrunk) -> tuple[str, float, float]:
    view = str(rng.choice(VIEWS, p=VIEW_PROBABILITIES))
    top = trunk.lung_top_mm
    if view == "liver":
        low, high = rng.uniform(-420, -190), rng.uniform(15, 120)
    elif view == "torso":
        low, high = rng.uniform(trunk.floor_mm - 150, trunk.floor_mm + 40), rng.uniform(60, top + 80)
    elif view == "slab":
        middle, length = rng.uniform(-240, 60), np.exp(rng.uniform(np.log(50), np.log(220)))
        low, high = middle - length / 2, middle + length / 2
    elif view == "pelvis":
        high = rng.uniform(-330, -245)
        low = high - rng.uniform(120, 320)
    elif view == "chest":
        low = rng.uniform(25, 70)
        high = low + rng.uniform(100, 250)
    else:
        low = rng.uniform(top - 110, top + 60)
        high = low + rng.uniform(120, 350)
    return view, float(low), float(high)


def _draw_scan(rng: np.random.Generator, trunk: WholeTrunk) -> WideScan:
    view, low, high = _draw_view(rng, trunk)
    truncated = rng.random() < 0.15
    metal = []
    if rng.random() < 0.06:
        metal = [uniform(rng, (0.2, 0.8), (0.2, 0.8), (0, 1)) for _ in range(rng.integers(1, 5))]
    return WideScan(
        view=view,
        low_mm=low,
        high_mm=high,
        field_of_view=uniform(rng, (0.72, 0.95), (0.75, 1.0)) if truncated else uniform(rng, (0.95, 1.3), (1.02, 1.45)),
        off_centre_mm=(rng.normal(0, 12), rng.normal(-5, 14)),
        thickness_mm=float(np.exp(rng.uniform(np.log(0.7), np.log(8.0)))),
        increment=rng.uniform(0.5, 1.0) if rng.random() < 0.7 else rng.uniform(1.0, 1.25),
        blur_mm=rng.uniform(0.4, 2.2),
        sharpening=rng.uniform(0, 1.2) if rng.random() < 0.3 else 0.0,
        noise_hu=float(np.exp(rng.uniform(np.log(2), np.log(38)))),
        grain_mm=rng.uniform(0.5, 2.4),
        streaks=rng.uniform(0, 1.0) if rng.random() < 0.6 else 0.0,
        bands_hu=rng.uniform(0, 25) if rng.random() < 0.35 else 0.0,
        metal=tuple(metal),
        circle_hu=-1024.0 if rng.random(2)[1] < 0.3 else None,  # the first was once of use: seeds mean what they did
        gain=rng.normal(1, 0.02),
        offset_hu=rng.normal(0, 3),
    )


def _grow_remnant(rng: np.random.Generator, left: Ellipsoid, plane: Ellipsoid) -> tuple[Ellipsoid, Ellipsoid]:
    """The left lobe, and the plane it was cut along, weeks after the right one is gone: it fills some of that room."""
    (x, y, z), grown = left.centre, rng.uniform(1.1, 1.45)
    x += max(rng.uniform(30, 60) - (x + left.half_axes[0]), 0.0)  # nobody's right lobe is taken who has no left one
    left = replace(left, centre=(x, y, z), half_axes=tuple(grown * half for half in left.half_axes))
    (x, y, z), shift = plane.centre, rng.uniform(20, 50)
    return left, replace(plane, centre=(x - shift, y, z))


def _draw_wide_liver(
    rng: np.random.Generator, trunk: WholeTrunk, vessels: tuple[Capsule, ...], kidney: Ellipsoid
) -> tuple[Liver, list[Capsule], str]:
    """A liver of any shape and size, its gallbladder, and what is special about it."""
    width, depth = trunk.cavity_half_mm
    liver, gallbladder = draw_liver(rng, trunk, vessels, kidney)
    kind = str(rng.choice(LIVER_KINDS, p=LIVER_KIND_PROBABILITIES))
    size = {"small": rng.uniform(0.62, 0.85), "large": rng.uniform(1.1, 1.35)}.get(kind, rng.uniform(0.9, 1.1))
    a, b, c = np.array([rng.uniform(0.62, 0.84) * width, rng.uniform(0.95, 1.2) * depth, rng.uniform(74, 112)]) * size
    if kind == "long":
        c *= rng.uniform(1.25, 1.6)
    right = Ellipsoid(
        (-rng.uniform(0.44, 0.58) * width, rng.uniform(-0.12, 0.08) * depth, float(rng.uniform(-6, 30) - c)),
        (float(a), float(b), float(c)),
        rng.uniform(-10, 10),
        rng.uniform(-10, 12),
    )
    reach = rng.uniform(-5, 60) if rng.random() < 0.4 else rng.uniform(40, 0.85 * width)
    half = size * rng.uniform(58, 92)
    left = Ellipsoid(
        (reach - half, rng.uniform(0.22, 0.52) * depth, rng.uniform(-62, -34)),
        (half, size * rng.uniform(0.3, 0.62) * depth, size * rng.uniform(22, 54)),
        rng.uniform(-28, 10),
        rng.uniform(-22, 8),
    )
    carved = []
    stomach_bed, far_left = liver.carved[-1], reach > 55
    fat = rng.uniform(0.5, 1.5) if rng.random() < 0.85 else 0.3
    for shape, gap in liver.carved[:-1]:
        if any(shape is other for other in vessels) or shape is kidney:
            gap = gap + rng.uniform(-0.5, 1.5) if shape is not kidney else rng.uniform(-1.0, 5)
        carved.append((shape, gap))
    hx, hy, hz = liver.hilum
    fissure = Ellipsoid(
        (hx + 24, hy - 4, hz + 12), (fat * 16, fat * rng.uniform(1, 3.5), fat * 18), rng.uniform(-10, 40)
    )
    carved.append((fissure, 0.0))
    ligament = Ellipsoid(
        (liver.fissure_x, hy + 30, hz + 4), (fat * rng.uniform(1.5, 5), fat * 16, fat * rng.uniform(8, 18))
    )
    carved.append((ligament, 0.0))
    if not far_left or rng.random() < 0.3:
        carved.append(stomach_bed)
    if kind in ("right", "left"):  # what a resection has left
        cut = rng.uniform(-45, 5)
        side = 400.0 if kind == "right" else -400.0
        plane = Ellipsoid((cut + side, 0.0, -80.0), (400.0, 1500.0, 1500.0), rng.uniform(-15, 15))
        if kind == "left":
            left, plane = _grow_remnant(rng, left, plane)
        carved.append((plane, 0.0))
    liver = replace(
        liver,
        right=right,
        left=left,
        hilum_above_mm=rng.uniform(0, 36) + (60 if kind == "long" else 0),
        concavity_mm=rng.uniform(0, 34),
        roughness_mm=rng.uniform(0.8, 3.4),
        nodules_mm=rng.uniform(1.2, 3.2) if rng.random() < (0.6 if kind == "small" else 0.1) else 0.0,
        wall_gap_mm=rng.uniform(-1.0, 3.0) if rng.random() < 0.85 else rng.uniform(4, 14),
        carved=tuple(carved),
    )
    return liver, gallbladder, kind


def _draw_wide_tumours(
    rng: np.random.Generator, trunk: WholeTrunk, liver: Liver, phase: str, hu: dict[str, float]
) -> tuple[Liver, tuple[Tumour, ...]]:
    """Tumours, cysts and calcifications of 5 to 120 mm; those at the surface push it outward."""
    if rng.random() < 0.15:
        return liver, ()
    tumours, bulges = [], []
    cysts, calcified = rng.random() < 0.15, rng.random() < 0.08
    for tumour in draw_tumours(rng, trunk, liver, phase):
        shape = tumour.shape
        if rng.random() < 0.12:
            factor = rng.uniform(1.3, 2.6)
            shape = replace(shape, half_axes=tuple(float(min(factor * half, 60)) for half in shape.half_axes))
        contrast = tumour.contrast_hu * rng.uniform(0.4, 1.6)
        tumour = replace(tumour, shape=shape, contrast_hu=contrast, texture_hu=rng.uniform(1, 18))
        if cysts or rng.random() < 0.06:
            contrast = rng.uniform(-5, 22) - hu["liver"]
            tumour = replace(
                tumour,
                contrast_hu=contrast,
                rim_mm=0.0,
                core_fraction=0.0,
                edge_mm=0.0,
                texture_hu=1.5,
                roughness_mm=0.3,
            )
        elif calcified:
            tumour = replace(tumour, core_fraction=rng.uniform(0.15, 0.6), core_contrast_hu=rng.uniform(60, 500))
        if rng.random() < 0.35:
            bulges.append(replace(shape, half_axes=tuple(half + 1.0 for half in shape.half_axes)))
        tumours.append(tumour)
    return replace(liver, bulges=tuple(bulges)), tuple(tumours)


def _draw_lookalikes(rng: np.random.Generator, trunk: WholeTrunk, hu: dict[str, float]) -> list[Part]:
    """Masses, collections, nodes and loops outside the liver that may look just like it."""
    width, depth = trunk.cavity_half_mm
    parts = []
    for _ in range(rng.poisson(1.6)):
        radius = float(np.exp(rng.uniform(np.log(8), np.log(65))))
        centre = uniform(rng, (-0.8 * width, 0.9 * width), (-0.6 * depth, 0.8 * depth), (-400, -10))
        shape = Ellipsoid(
            centre, tuple((radius * rng.uniform(0.6, 1.2, 3)).tolist()), rng.uniform(0, 180), rng.uniform(-40, 40)
        )
        density = hu["liver"] + rng.normal(0, 12) if rng.random() < 0.5 else rng.uniform(-5, 150)
        wall = rng.uniform(1, 4) if rng.random() < 0.4 else 0.0
        parts.append(
            Part(
                (shape,), density, rng.uniform(1, 12), rng.uniform(0.5, 4), wall, rng.uniform(30, 120), within="cavity"
            )
        )
    return parts


def draw_wide_patient(rng: np.random.Generator) -> Patient:
    """Draw everything that is known of a patient and their scan before a grid is chosen."""
    phase = str(rng.choice(PHASES, p=WIDE_PHASE_PROBABILITIES))
    hu = draw_wide_hu(rng, phase)
    trunk = draw_whole_trunk(rng)
    width, depth = trunk.cavity_half_mm
    deep, cava, aorta, right_kidney = draw_retroperitoneum(rng, trunk, hu)
    liver, gallbladder, kind = _draw_wide_liver(rng, trunk, cava + aorta, right_kidney)
    liver, tumours = _draw_wide_tumours(rng, trunk, liver, phase, hu)
    grown = rng.uniform(0.75, 1.1) if rng.random() < 0.75 else rng.uniform(1.1, 1.7)
    spleen = Ellipsoid(
        (rng.uniform(0.55, 0.72) * width, rng.uniform(-0.55, -0.2) * depth, rng.uniform(-80, -45)),
        tuple((grown * np.array(uniform(rng, (26, 42), (42, 62), (40, 66)))).tolist()),
        rng.uniform(-40, 0),
        rng.uniform(-15, 18),
    )
    behind = [
        *draw_heart(rng, trunk, hu),
        *draw_whole_pelvis(rng, trunk, hu),
        *(part for part in draw_gut(rng, trunk, hu) if len(part.shapes) > 6 or rng.random() < 0.5),
        *(draw_gut(rng, trunk, hu)[:12] if rng.random() < 0.5 else ()),
        *draw_stomach(rng, trunk, hu),
        *_draw_lookalikes(rng, trunk, hu),
        *([Part((spleen,), hu["spleen"], texture_hu=4.0, roughness_mm=2.0)] if rng.random() < 0.96 else []),
        *deep,
    ]
    beside = [part for part in deep if part.shapes is cava]  # once more, over the fat around the liver
    if gallbladder:
        beside.append(Part(tuple(gallbladder), hu["bile"], wall_mm=rng.uniform(0.8, 4), wall_hu=hu["muscle"]))
        if rng.random() < 0.15:
            stone = Ellipsoid(gallbladder[-1].start, (rng.uniform(3, 8),) * 3)
            beside.append(Part((stone,), rng.uniform(60, 500), texture_hu=40.0))
    limbs, bones = draw_limbs(rng, trunk, hu)
    trunk_of_portal = bend([(0, 4, -112), (-12, 8, -102), liver.hilum], 3)
    duct = bend([np.add(liver.hilum, (-4, 6, 2)), (-24, 8, -108), (-34, -2, -135)], 3)
    after = [
        Part(tube(trunk_of_portal, rng.uniform(5, 8.5)), hu["portal"]),
        Part(tube(duct, rng.uniform(1.5, 6)), hu["bile"]),
    ]
    overall = rng.uniform(0.86, 1.14) if rng.random() < 0.95 else rng.uniform(0.6, 0.86)
    patient = Patient(
        phase=phase,
        hu=hu,
        trunk=trunk,
        liver=liver,
        behind_liver=(*bones, *behind),
        vessels=tuple(draw_liver_vessels(rng, trunk, liver, cava, hu)),
        tumours=tumours,
        after_liver=tuple(after),
        fields={
            **{f"warp_{axis}": SmoothField.draw(rng, 70.0, 12) for axis in "xyz"},
            "shading": SmoothField.draw(rng, 90.0, 10),
            "waves": SmoothField.draw(rng, 20.0, 30),
            "strands_a": SmoothField.draw(rng, 15.0, 36),
            "strands_b": SmoothField.draw(rng, rng.uniform(10, 18), 36),
            "grain": SmoothField.draw(rng, 5.0, 56),
        },
        warp_mm=rng.uniform(2, 8),
        scale=tuple((overall * rng.uniform(0.94, 1.06, 3)).tolist()),
        rotation=turn_by(np.deg2rad(rng.normal(0, (3, 3, 5)))),
        shift_mm=uniform(rng, (-25, 25), (-35, 35), (-300, 300)),
        findings=Findings(
            arms_down=False,
            breasts_mm=rng.uniform(5, 50) if rng.random() < 0.45 else 0.0,
            ascites_mm=rng.uniform(3, 30) if rng.random() < (0.4 if kind == "small" else 0.1) else 0.0,
            effusion_mm=rng.uniform(10, 90) if rng.random() < 0.15 else 0.0,
            shading_hu=rng.uniform(0, 8),
            liver_texture_hu=rng.uniform(0, 8),
            liver_kind=kind,
            lining_mm=rng.uniform(0, 5) if rng.random() < 0.4 else 0.0,
            marbling_hu=rng.uniform(0, 60) if rng.random() < 0.5 else 0.0,
            crowding=rng.uniform(-1.2, 0.8) if rng.random() < 0.55 else -np.inf,
        ),
        table=Table(
            present=bool(rng.random() < 0.8),
            gap_mm=rng.uniform(0, 16),
            curvature_per_mm=rng.uniform(0, 1.8e-3),
            hollow_mm=rng.uniform(8, 40),
        ),
        scan=_draw_scan(rng, trunk),
        limbs=tuple(limbs),
        beside_liver=tuple(beside),
    )
    # Drawn last: of each seed all else is as it was without.
    sheath = rng.uniform(0.6, 3.0) if rng.random() < 0.85 and not patient.findings.ascites_mm else 0.0
    return replace(patient, findings=replace(patient.findings, sheath_mm=sheath))
