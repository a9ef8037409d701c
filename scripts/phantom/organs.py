"""What else is around the liver: what lies in the chest, behind the belly and in the pelvis?"""

from dataclasses import replace

import numpy as np

from scripts.phantom.randomness import uniform
from scripts.phantom.shapes import Capsule, Ellipsoid, bend, tube
from scripts.phantom.tissues import Part
from scripts.phantom.trunk import Trunk, WholeTrunk


def draw_chest_and_pelvis(rng: np.random.Generator, trunk: Trunk, hu: dict[str, float]) -> list[Part]:
    """Heart, bladder, rectum, hips and their muscles."""
    return draw_heart(rng, trunk, hu) + _draw_pelvis(rng, trunk, hu)


def draw_heart(rng: np.random.Generator, trunk: Trunk, hu: dict[str, float]) -> list[Part]:
    """The heart in its fat, with four chambers."""
    depth = trunk.cavity_half_mm[1]
    heart = np.array([14, 0.25 * depth, 34]) + rng.normal(0, 4, 3)
    size = rng.uniform(0.85, 1.15)
    heart_axes = size * np.array([60, 46, 48])
    fat_pad = Ellipsoid(
        tuple(np.add(heart, (0, 4, -6)).tolist()), tuple(np.add(heart_axes, (10, 12, 8)).tolist()), -25, 20
    )
    parts = [
        Part((fat_pad,), hu["fat"], 8.0, 3.0, within="chest"),
        Part(
            (Ellipsoid(tuple(heart.tolist()), tuple(heart_axes.tolist()), -25, 20),),
            hu["heart_wall"],
            4.0,
            2.0,
            within="chest",
        ),
    ]
    for offset, axes, tissue in (
        ((22, 0, -6), (24, 19, 24), "aorta"),
        ((-8, 18, -6), (32, 14, 24), "cava"),
        ((4, -18, 16), (28, 14, 18), "aorta"),
        ((-34, 2, 4), (16, 20, 24), "cava"),
    ):
        chamber = Ellipsoid(
            tuple((heart + size * np.array(offset)).tolist()), tuple((size * np.array(axes)).tolist()), -25
        )
        parts.append(Part((chamber,), 0.85 * hu[tissue] + 0.15 * hu["heart_wall"], 4.0, 2.0, within="chest"))
    return parts


def _draw_pelvis(rng: np.random.Generator, trunk: Trunk, hu: dict[str, float]) -> list[Part]:
    width, depth = trunk.cavity_half_mm
    parts = []
    bladder = Ellipsoid((0, 0.2 * depth, -395), uniform(rng, (22, 48), (20, 40), (18, 45)))
    parts.append(Part((bladder,), rng.uniform(-2, 16), 0.0, 2.0, wall_mm=3.5, wall_hu=hu["muscle"], within="cavity"))
    parts.append(
        Part((Ellipsoid((0, -0.2 * depth, -410), (26, 24, 34)),), hu["muscle"] + 15, 8.0, 2.0, within="cavity")
    )
    for side in (-1, 1):
        hip = (side * 0.66 * width, 0.0, -415)
        gluteus = Ellipsoid((side * 0.58 * width, -0.95 * depth, -385), (52, 34, 85), side * 25)
        parts.append(Part((gluteus,), hu["muscle"], 8.0, 2.0, within="body"))
        for radius, tissue in ((34, hu["muscle"]), (25, 420.0), (21, 240.0)):
            parts.append(Part((Ellipsoid(hip, (radius,) * 3),), tissue, 20.0 if radius < 30 else 6.0, within="body"))
    return parts


def draw_retroperitoneum(
    rng: np.random.Generator, trunk: Trunk, hu: dict[str, float]
) -> tuple[list[Part], tuple[Capsule, ...], tuple[Capsule, ...], Ellipsoid]:
    """Muscles, great vessels, kidneys and adrenals; also the cava, the aorta and the right kidney by themselves."""
    muscles = _draw_back_muscles(trunk, hu)
    kidneys, right_kidney = _draw_kidneys(rng, trunk, hu)
    vessels, cava, aorta = _draw_great_vessels(rng, trunk, hu)
    return muscles + kidneys + vessels, cava, aorta, right_kidney


def _draw_back_muscles(trunk: Trunk, hu: dict[str, float]) -> list[Part]:
    """On each side the psoas, the crus of the diaphragm and the muscle of the loin."""
    depth, front = trunk.cavity_half_mm[1], trunk.spine_front_y
    parts = []
    for side in (-1, 1):
        psoas = [
            (side * 24, trunk.spine_axis_y(-110), -125),
            (side * 33, front(-170) - 14, -170),
            (side * 42, front(-240) - 6, -240),
        ]
        psoas += [(side * 55, front(-300) + 4, -300), (side * 80, 0, -400)]
        parts.append(Part(tube(bend(psoas), np.linspace(6, 24, 17)), hu["muscle"], 5.0, 1.5, within="body"))
        crus = [(side * 18, front(-20) - 4, -18), (side * 17, front(-60) - 1, -60), (side * 13, front(-170) + 1, -175)]
        parts.append(Part(tube(bend(crus), np.linspace(5, 4, 9)), hu["muscle"], 3.0, 1.0))
        loin = Ellipsoid((side * 60, -0.86 * depth, -215), (27, 12, 85), side * 20)
        parts.append(Part((loin,), hu["muscle"], 5.0, 1.5, within="body"))
    return parts


def _draw_kidneys(rng: np.random.Generator, trunk: Trunk, hu: dict[str, float]) -> tuple[list[Part], Ellipsoid]:
    """Kidneys and adrenals; also the right kidney by itself."""
    depth = trunk.cavity_half_mm[1]
    parts = []
    kidneys = []
    for side, top in ((-1, rng.uniform(-150, -122)), (1, rng.uniform(-136, -104))):
        half = uniform(rng, (23, 30), (20, 27), (46, 60))
        centre = (side * rng.uniform(52, 64), -0.50 * depth, top)
        kidneys.append(Ellipsoid(centre, half, side * rng.uniform(20, 45), side * rng.uniform(6, 16)))
    for kidney in kidneys:
        (x, y, z), (a, b, c) = kidney.centre, kidney.half_axes
        inward = -np.sign(x)
        parts.append(Part((kidney,), hu["cortex"], roughness_mm=1.0))
        medulla = replace(kidney, half_axes=(0.74 * a, 0.72 * b, 0.84 * c))
        parts.append(Part((medulla,), hu["kidney"], texture_hu=6.0 + 0.12 * (hu["cortex"] - hu["kidney"])))
        sinus = Ellipsoid((x + inward * 0.5 * a, y + 0.25 * b, z), (0.55 * a, 0.42 * b, 0.5 * c))
        parts.append(Part((sinus,), hu["fat"] + 25, 22.0, 2.0))
        pelvis = hu["kidney"] if rng.random() < 0.6 else rng.uniform(0, 20)
        parts.append(Part(tube([(x + inward * 0.5 * a, y, z), (x + inward * 1.3 * a, y + 5, z - 8)], [4, 4]), pelvis))
        if rng.random() < 0.25:
            cyst = np.array(kidney.centre) + rng.uniform(-0.8, 0.8, 3) * kidney.half_axes
            parts.append(Part((Ellipsoid(tuple(cyst.tolist()), (rng.uniform(4, 20),) * 3),), rng.uniform(0, 18)))
        adrenal = np.array([x + inward * 22, y + 8, z + 0.95 * c])
        for tip in ((-8, -16, -4), (10, -15, -8)):
            parts.append(Part(tube([adrenal, adrenal + tip], [3.2, 2.2]), hu["muscle"] + 10))
    return parts, kidneys[0]


def _draw_great_vessels(
    rng: np.random.Generator, trunk: Trunk, hu: dict[str, float]
) -> tuple[list[Part], tuple[Capsule, ...], tuple[Capsule, ...]]:
    """Aorta, cava and their branches, the splenic vein; also the cava and the aorta by themselves."""
    (width, depth), front = trunk.cavity_half_mm, trunk.spine_front_y
    parts = []
    r_aorta, r_cava = rng.uniform(9, 13.5), rng.uniform(8.5, 12.5)
    aorta = [(18, front(60) - 8, 300), (16, front(60) - 4, 60), (10, front(-20) + 9, -20), (4, front(-110) + 13, -110)]
    aorta += [(3, front(-240) + 11, -240)]
    aorta = bend(np.array(aorta) + rng.normal(0, 2, (5, 3)), 2)
    aorta_tube = tube(aorta, np.linspace(1.1, 0.85, len(aorta)) * r_aorta)
    parts.append(Part(aorta_tube, hu["aorta"], within="body"))
    if rng.random() < 0.5:  # plaques
        for index in rng.integers(4, len(aorta), size=rng.integers(2, 9)):
            angle = rng.uniform(0, 2 * np.pi)
            plaque = aorta[index] + 0.95 * r_aorta * np.array([np.cos(angle), np.sin(angle), 0])
            parts.append(Part((Ellipsoid(tuple(plaque.tolist()), uniform(rng, *[(1, 3.5)] * 3)),), 600.0))
    for side in (-1, 1):
        iliac = bend([(3, front(-240) + 10, -240), (side * 32, front(-300) + 14, -300), (side * 70, 30, -410)])
        parts.append(Part(tube(iliac, 6.5), hu["aorta"], within="body"))
        iliac[:, :2] += (5 * side, -12)
        parts.append(Part(tube(iliac, 7.5), hu["cava"], within="body"))
    cava = [(-20, 2, 15), (-25, front(-20) + 12, -18), (-25, front(-60) + 12, -60), (-24, front(-110) + 11, -110)]
    cava += [(-18, front(-240) + 9, -240)]
    cava = tube(bend(np.array(cava) + rng.normal(0, 1.5, (5, 3)), 2), r_cava)
    parts.append(Part(cava, hu["cava"], texture_hu=4.0, within="body"))
    for start, end in ((aorta[6], (0, 14, -105)), (aorta[6], (4, 16, -190)), (aorta[6], (50, -0.4 * depth, -125))):
        end = np.array(end, float)
        parts.append(Part(tube(bend([start, (start + end) / 2 + (0, 6, 0), end], 3), 3.4), hu["aorta"]))
    splenic = bend([(0, 4, -108), (30, -12, -98), (60, -22, -88), (0.66 * width, -0.3 * depth, -75)], 3)
    splenic[1:-1] += rng.normal(0, 3, (len(splenic) - 2, 3))
    parts.append(Part(tube(splenic, 4.2), hu["portal"]))
    return parts, cava, aorta_tube


def draw_whole_pelvis(rng: np.random.Generator, trunk: WholeTrunk, hu: dict[str, float]) -> list[Part]:
    """Sacrum, buttocks, bladder of any size and content, rectum, womb or prostate, and now and then a mass."""
    width, depth = trunk.cavity_half_mm
    floor, sacrum = trunk.floor_mm, trunk.sacrum_mm
    parts = []
    for side in (-1, 1):
        for layer in range(2):
            gluteus = Ellipsoid(
                (side * rng.uniform(0.5, 0.75) * width, rng.uniform(-1.0, -0.8) * depth, floor + rng.uniform(40, 80)),
                uniform(rng, (42, 60), (22, 34), (70, 100)),
                side * rng.uniform(10, 40),
            )
            parts.append(Part((gluteus,), hu["muscle"] - 5 * layer, 10.0, 3.0, within="body"))
        obturator = Ellipsoid((side * 62.0, -5.0, floor + 25), (10, 34, 40), side * 15)
        parts.append(Part((obturator,), hu["muscle"], 6.0, 1.5, within="body"))
    back = float(trunk.spine_axis_y(sacrum))
    plate = bend(
        [(0, back, sacrum - 5), (0, back - 22, sacrum - 50), (0, back - 28, sacrum - 95), (0, back - 8, sacrum - 130)],
        3,
    )
    bone = {"hu": hu["marrow"], "texture_hu": 30.0, "wall_mm": 2.2, "wall_hu": rng.uniform(350, 650), "within": "body"}
    wings = []
    for reach in (0, 14, 28, 40):
        rows = plate[: len(plate) - reach // 9]
        for side in (-1, 1) if reach else (1,):
            wings += tube(np.add(rows, (side * reach, -0.15 * reach, 0)), np.linspace(20, 8, len(plate))[: len(rows)])
    parts.append(Part(tuple(wings), **bone))
    fill = rng.random()
    half = uniform(rng, (28, 65), (22, 55), (20, 75)) if fill < 0.7 else uniform(rng, (15, 26), (12, 22), (10, 20))
    urine = rng.uniform(-5, 20) if rng.random() < 0.8 else rng.uniform(20, 500)
    centre = (rng.normal(0, 8), rng.uniform(0.05, 0.4) * depth, floor + 30 + half[2] * rng.uniform(0.6, 1.0))
    bladder = Part(
        (Ellipsoid(centre, half),), urine, 1.5, 2.0, wall_mm=rng.uniform(1.5, 6), wall_hu=hu["muscle"], within="cavity"
    )
    rectum = bend(
        [
            (0, -0.35 * depth, floor),
            (5, -0.42 * depth, floor + 50),
            (-8, -0.3 * depth, floor + 90),
            (30, -0.1 * depth, floor + 120),
        ],
        4,
    )
    content = rng.choice(3)
    filling = {0: {"hu": hu["gut_wall"], "texture_hu": 10.0}, 1: {"hu": rng.uniform(-80, 60), "texture_hu": 90.0}}.get(
        int(content), {"hu": rng.uniform(0, 40), "gas_above_mm": rng.uniform(-0.6, -0.3) * depth}
    )
    gut = Part(
        tube(rectum, rng.uniform(12, 30)),
        wall_mm=3.0,
        wall_hu=hu["gut_wall"],
        roughness_mm=2.0,
        within="cavity",
        **filling,
    )
    middle = (rng.normal(0, 6), -0.08 * depth, floor + rng.uniform(30, 60))
    solid = Ellipsoid(middle, uniform(rng, (20, 48), (16, 36), (18, 50)), tilt_deg=rng.uniform(-25, 25))
    parts += [gut, Part((solid,), hu["muscle"] + rng.uniform(-10, 60), 8.0, 2.5, within="cavity"), bladder]
    for _ in range(rng.poisson(0.5)):
        spot = uniform(rng, (-0.5 * width, 0.5 * width), (-0.3 * depth, 0.5 * depth), (floor + 30, sacrum + 60))
        radius = np.exp(rng.uniform(np.log(12), np.log(60)))
        mass = Ellipsoid(spot, tuple((radius * rng.uniform(0.7, 1.2, 3)).tolist()), rng.uniform(0, 180))
        parts.append(
            Part(
                (mass,),
                rng.uniform(0, 130),
                rng.uniform(1, 14),
                2.5,
                rng.uniform(0, 4),
                rng.uniform(30, 110),
                within="cavity",
            )
        )
    return parts
