"""What is attached to the trunk: neck, head, shoulders, arms and thighs, with their bones?"""

from dataclasses import dataclass

import numpy as np

from scripts.phantom.randomness import uniform
from scripts.phantom.shapes import Capsule, Ellipsoid, Shape, bend, tube
from scripts.phantom.tissues import Part
from scripts.phantom.trunk import WholeTrunk


@dataclass(frozen=True)
class Limb:
    """Flesh that the skin encloses together with the trunk: muscle under ``fat_mm`` of fat."""

    flesh: tuple[Shape, ...]
    fat_mm: float


def draw_limbs(rng: np.random.Generator, trunk: WholeTrunk, hu: dict[str, float]) -> tuple[list[Limb], list[Part]]:
    """The limbs and what is in them; arms are up, down, or one of each."""
    side_mm = trunk.skin_mm[0]
    fat = float(np.clip(trunk.fat_mm[0] * rng.uniform(0.3, 0.8), 3, 25))
    limbs, parts = [], []
    both_up, odd = rng.random() < 0.6, rng.random() < 0.08
    width = rng.uniform(150, 185)
    for side in (-1, 1):
        shoulder = np.array([side * width, rng.uniform(-40, 0), trunk.lung_top_mm + rng.uniform(-5, 25)])
        girdle = Capsule((side * 45.0, -25.0, trunk.lung_top_mm + 25), tuple(shoulder.tolist()), 42 + fat, 50 + fat)
        up = both_up != (odd and side == 1)
        if up:
            elbow = shoulder + uniform(rng, (-60, 60), (-10, 50), (180, 260)) * np.array([side, 1, 1])
            wrist = elbow + uniform(rng, (-180, -60), (-20, 60), (20, 160)) * np.array([side, 1, 1])
        else:
            elbow = np.array([side * (side_mm + rng.uniform(25, 60)), rng.uniform(-60, 0), rng.uniform(-130, -60)])
            wrist = elbow + uniform(rng, (-90, 25), (0, 90), (-230, -120)) * np.array([side, 1, 1])
        arm = rng.uniform(30, 46)
        limbs.append(Limb((girdle, *tube([shoulder, elbow, wrist], [arm + fat, arm + fat / 2, 0.7 * arm])), fat))
        bone = {"hu": rng.uniform(30, 250), "wall_mm": rng.uniform(3, 6), "wall_hu": rng.uniform(600, 1300)}
        parts.append(Part(tube([shoulder, elbow], [15, 11]), within="body", **bone))
        for shift in (-9.0, 9.0):
            forearm = tube([np.add(elbow, (shift, 0, 0)), np.add(wrist, (shift, 0, 0))], 7)
            parts.append(Part(forearm, within="body", **bone))
        blade = tube([shoulder, (side * 75.0, -0.85 * trunk.cavity_half_mm[1], 80.0)], [13, 6])
        collar = tube([shoulder, (side * 20.0, 0.45 * trunk.cavity_half_mm[1], trunk.lung_top_mm + 5)], [8, 8])
        parts += [Part(blade, within="body", **bone), Part(collar, within="body", **bone)]
        thighs, bones = _draw_thigh(rng, trunk, side, fat, bone)
        limbs.append(thighs)
        parts += bones
    neck, head = _draw_head(rng, trunk, hu, fat)
    return [*limbs, neck], parts + head


def _draw_thigh(
    rng: np.random.Generator, trunk: WholeTrunk, side: int, fat_mm: float, bone: dict[str, float]
) -> tuple[Limb, list[Part]]:
    hips = trunk.hips * trunk.cavity_half_mm[0] + trunk.muscle_mm[0] + trunk.fat_mm[0]
    radius = 0.5 * hips + rng.uniform(-4, 6)
    centre = side * 0.5 * hips
    flesh = tube([(centre, -8, trunk.floor_mm + 50), (1.05 * centre, 0, -950)], [radius, 0.7 * radius])
    head = np.array([side * rng.uniform(78, 95), 0.0, trunk.floor_mm + rng.uniform(28, 45)])
    trochanter = np.add(head, (side * 42, -8, -22))
    shaft = np.array([1.02 * centre, 5.0, -950.0])
    femur = (
        Ellipsoid(tuple(head.tolist()), (rng.uniform(21, 26),) * 3),
        *tube([head, trochanter], [14, 17]),
        *tube([trochanter, (1.02 * centre + side * 10, 0, trunk.floor_mm - 90), shaft], [17, 14, 13]),
    )
    socket = tuple(np.add(head, (side * -9, 0, 6)).tolist())
    cup = Part((Ellipsoid(socket, (32, 34, 32)),), within="body", **{**bone, "wall_mm": 3.0})
    front = tuple(np.add(head, (side * -60, 30, -30)).tolist())
    sit = tuple(np.add(head, (side * -25, -38, -50)).tolist())
    rami = tube([socket, front, np.add(front, (0, -12, -22)), sit, socket], [13, 10, 9, 15, 16])
    joint = Part((Ellipsoid(tuple(head.tolist()), (28,) * 3),), 70.0, within="body")
    bones = [cup, Part(rami, within="body", **{**bone, "wall_mm": 2.5}), joint, Part(femur, within="body", **bone)]
    return Limb(flesh, fat_mm), bones


def _draw_head(
    rng: np.random.Generator, trunk: WholeTrunk, hu: dict[str, float], fat_mm: float
) -> tuple[Limb, list[Part]]:
    top = trunk.lung_top_mm
    radius = rng.uniform(48, 60)
    tilt = rng.uniform(-15, 25)
    chin, middle = np.array([0.0, 25.0 + tilt, top + 150]), np.array([0.0, 8.0 + tilt, top + 215])
    flesh = (
        Capsule((0.0, -10.0, top - 10), (0.0, -4.0 + 0.5 * tilt, top + 130), radius + fat_mm + 10, radius + fat_mm),
        Ellipsoid(tuple(chin.tolist()), (62, 75, 62)),
        Ellipsoid(tuple(middle.tolist()), (80, 100, 110)),
    )
    skull = Ellipsoid(tuple(np.add(middle, (0, -6, 12)).tolist()), (74, 90, 90))
    parts = [
        Part(
            (skull,), rng.uniform(28, 42), 4.0, wall_mm=rng.uniform(4, 9), wall_hu=rng.uniform(700, 1300), within="body"
        )
    ]
    for side in (-1, 1):
        horn = np.add(middle, (side * 14, 0, 15))
        parts.append(
            Part(
                tube([np.add(horn, (0, 28, 0)), np.add(horn, (side * 6, -35, 0))], [7, 8]),
                rng.uniform(2, 14),
                within="body",
            )
        )
        jaw = [
            np.add(chin, (0, 52, -25)),
            np.add(chin, (side * 28, 40, -20)),
            np.add(chin, (side * 48, -5, -10)),
            np.add(chin, (side * 50, -8, 40)),
        ]
        parts.append(Part(tube(bend(jaw, 3), 9), 250.0, wall_mm=3.0, wall_hu=1000.0, within="body"))
        sinus = np.add(chin, (side * 26, 38, 42))
        parts.append(
            Part((Ellipsoid(tuple(sinus.tolist()), (14, 17, 18)),), -900.0, wall_mm=2.0, wall_hu=500.0, within="body")
        )
        eye = np.add(chin, (side * 32, 56, 78))
        parts.append(
            Part((Ellipsoid(tuple(eye.tolist()), (12, 12, 12)),), 12.0, wall_mm=1.5, wall_hu=60.0, within="body")
        )
        lobe = (side * 20.0, 18.0, top + rng.uniform(30, 60))
        parts.append(
            Part(
                (Ellipsoid(lobe, uniform(rng, (8, 14), (9, 15), (18, 28))),),
                hu["spleen"] + rng.uniform(20, 90),
                within="body",
            )
        )
        for offset, radius_mm, tissue in (((26, 2), 4.0, "aorta"), ((34, 6), 7.0, "cava")):
            path = [(0.6 * side * offset[0], offset[1] + 8, top - 60), (side * offset[0], offset[1], top + 130)]
            parts.append(Part(tube(path, radius_mm), hu[tissue], within="body"))
    airway = bend(
        [(0, 32 + tilt, top + 170), (0, 14, top + 110), (0, 16, top + 20), (0, -0.15 * trunk.cavity_half_mm[1], 100)], 4
    )
    parts.append(Part(tube(airway, 9), -950.0, wall_mm=1.8, wall_hu=60.0, within="body"))
    return Limb(flesh, fat_mm), parts
