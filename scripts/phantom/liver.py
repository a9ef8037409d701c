"""What do a liver, its vessels, its gallbladder and its tumours look like?"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scripts.phantom.randomness import uniform
from scripts.phantom.shapes import Box, Capsule, Ellipsoid, Points, Shape, bend, smooth_max, smooth_min, tube
from scripts.phantom.tissues import Part
from scripts.phantom.trunk import Trunk

MAX_TUMOURS = 8


@dataclass(frozen=True)
class Liver:
    """A right lobe that fills the space under the right dome, a left lobe, a caudate lobe, cut from below."""

    right: Ellipsoid
    left: Ellipsoid
    caudate: Ellipsoid
    hilum: tuple[float, float, float]
    visceral_normal: tuple[float, float, float]
    hilum_above_mm: float  # the plane of the lower face
    concavity_mm: float
    fissure_x: float
    fissure_depth_mm: float
    roughness_mm: float
    carved: tuple[tuple[Shape, float], ...]  # neighbours and the gap in millimetres to keep to each
    nodules_mm: float = 0.0  # standard deviation of a cirrhotic surface
    wall_gap_mm: float = 2.5  # to the wall of the cavity, half a millimetre more to the diaphragm
    bulges: tuple[Ellipsoid, ...] = ()  # of tumours beyond its surface

    def bounds_mm(self) -> tuple[np.ndarray, np.ndarray]:
        bounds = np.array([shape.bounds_mm() for shape in (self.right, self.left, *self.bulges)])
        return bounds[:, 0].min(0) - 5, bounds[:, 1].max(0) + 5

    def distance_mm(
        self,
        x: np.ndarray,
        y: np.ndarray,
        z: np.ndarray,
        cavity: np.ndarray,
        diaphragm: np.ndarray,
        find_box: Callable[[np.ndarray, np.ndarray, float], Box | None] = lambda *_: (...,),
    ) -> np.ndarray:
        """Signed distance, given those to the cavity's wall and to the diaphragm at the same points.

        ``find_box`` says which of the points can be in a box of body coordinates or in the margin around it; without
        it, all.
        """
        lobes = smooth_min(self.right.distance_mm(x, y, z), self.left.distance_mm(x, y, z), 14.0)
        hx, hy, hz = (coordinate - h for coordinate, h in zip((x, y, z), self.hilum, strict=True))
        nx, ny, nz = self.visceral_normal
        hollow = self.concavity_mm * np.exp(-(hx**2 + hy**2) / 45.0**2)
        below = nx * hx + ny * hy + nz * hz + hollow - self.hilum_above_mm
        # The fissure of the round ligament: a wedge that opens downward and to the front.
        fissure = np.abs(x - self.fissure_x) + 0.22 * (hz - self.fissure_depth_mm) - 0.05 * hy
        fissure = np.maximum(fissure, 6 - hy)
        surface = smooth_max(lobes, below, 16.0)
        surface = smooth_max(surface, -fissure, 5.0)
        if box := find_box(*self.caudate.bounds_mm(), 5.0):
            surface[box] = smooth_min(surface[box], self.caudate.distance_mm(x[box], y[box], z[box]), 5.0)
        for shape, gap_mm in self.carved:
            if box := find_box(*shape.bounds_mm(), max(gap_mm, 0.0) + 6.0):
                distance = shape.distance_mm(x[box], y[box], z[box])
                surface[box] = smooth_max(surface[box], gap_mm - distance, 6.0)
        for bulge in self.bulges:
            if box := find_box(*bulge.bounds_mm(), 8.0):
                surface[box] = smooth_min(surface[box], bulge.distance_mm(x[box], y[box], z[box]), 8.0)
        surface = smooth_max(surface, cavity + self.wall_gap_mm, 8.0)
        return smooth_max(surface, diaphragm + (self.wall_gap_mm + 0.5), 8.0)


@dataclass(frozen=True)
class Tumour:
    """A lesion of the liver; each ``contrast_hu`` is against the liver's HU; 0 is no rim, no core, a sharp edge."""

    shape: Ellipsoid
    contrast_hu: float
    rim_mm: float
    rim_contrast_hu: float
    core_fraction: float
    core_contrast_hu: float
    edge_mm: float
    roughness_mm: float
    texture_hu: float


def draw_liver(
    rng: np.random.Generator, trunk: Trunk, great_vessels: tuple[Capsule, ...], kidney: Ellipsoid
) -> tuple[Liver, list[Capsule]]:
    """The liver and the gallbladder in its fossa (no shapes where it has been removed)."""
    width, depth = trunk.cavity_half_mm
    hilum = (rng.uniform(-40, -20), rng.uniform(-2, 14), rng.uniform(-96, -76))
    hx, hy, hz = hilum
    normal = np.array([rng.uniform(0.10, 0.45), rng.uniform(-0.25, 0.05), -0.9])
    normal /= np.linalg.norm(normal)
    neck = np.array([hx - 8, hy + 22, hz - 12])
    fundus = neck + uniform(rng, (-26, -4), (16, 34), (-48, -26))
    gallbladder = list(
        tube(bend([neck, (neck + fundus) / 2 + (-4, -2, 4), fundus], 2), np.linspace(5, rng.uniform(11, 19), 5))
    )
    if rng.random() < 0.12:
        gallbladder = []
    hilar_fat = [
        Ellipsoid((hx, hy, hz), uniform(rng, (18, 26), (9, 14), (11, 17)), rng.uniform(-30, 10)),
        Capsule((hx, hy + 2, hz), (hx - 30, hy, hz + 4), 8.0, 3.0),
        Capsule((hx, hy + 2, hz), (hx + 32, hy + 24, hz + 14), 7.0, 4.0),
    ]
    (kx, ky, kz), (ka, kb, kc) = kidney.centre, kidney.half_axes
    behind_kidney = (kx + 17, ky - 25, kz + 2)
    perirenal = Ellipsoid(behind_kidney, (ka + 9, kb + 20, kc + 5), kidney.angle_deg, kidney.tilt_deg)
    spine_y = float(trunk.spine_axis_y(-80))
    column = Capsule((4, spine_y - 4, -250), (4, spine_y - 4, 40), 30.0, 34.0)
    stomach_bed = Ellipsoid((0.52 * width, -0.2 * depth, -80), (52, 45, 62))
    carved = (
        [(shape, -1.5) for shape in great_vessels if shape.start[2] > -150 and shape.end[2] < 10]
        + [(shape, -1.0) for shape in gallbladder]
        + [(kidney, rng.uniform(1.5, 7)), (perirenal, 0.0)]
    )
    carved += [(shape, 0.0) for shape in (*hilar_fat, column, stomach_bed)]
    reach = rng.uniform(38, 92)
    liver = Liver(
        right=Ellipsoid(
            (-0.52 * width, rng.uniform(-6, 2), rng.uniform(-82, -62)),
            (rng.uniform(0.68, 0.78) * width, 1.15 * depth, rng.uniform(82, 108)),
            0.0,
            rng.uniform(-6, 8),
        ),
        left=Ellipsoid(
            (reach - 78, 0.42 * depth, rng.uniform(-52, -40)),
            (78.0, rng.uniform(0.46, 0.62) * depth, rng.uniform(34, 50)),
            rng.uniform(-18, 4),
            rng.uniform(-14, 4),
        ),
        caudate=Ellipsoid((hx + 14, hy - 16, hz + 22), uniform(rng, (12, 19), (9, 14), (22, 30)), 20.0),
        hilum=hilum,
        visceral_normal=tuple(normal.tolist()),
        hilum_above_mm=rng.uniform(6, 30),
        concavity_mm=rng.uniform(0, 30),
        fissure_x=rng.uniform(-14, 6),
        fissure_depth_mm=rng.uniform(-8, 22),
        roughness_mm=rng.uniform(1.2, 2.8),
        carved=tuple(carved),
    )
    return liver, gallbladder


def draw_liver_vessels(
    rng: np.random.Generator, trunk: Trunk, liver: Liver, cava: tuple[Capsule, ...], hu: dict[str, float]
) -> list[Part]:
    """The hepatic veins, which start at the cava, and the portal vein's branches, which start at the hilum."""
    width, depth = trunk.cavity_half_mm
    hx, _, hz = liver.hilum
    hilum = np.array(liver.hilum)
    right, left = np.add(hilum, (-26, -2, 6)), np.add(hilum, (28, 22, 14))
    thick = rng.uniform(5.5, 7.5)
    portal = [*tube([hilum, right], [thick, 0.85 * thick]), *tube([hilum, left], [0.8 * thick, 0.7 * thick])]
    right_tips = [(-0.70 * width, 0.5 * depth, hz + 10), (-0.78 * width, -0.45 * depth, hz + 18)]
    right_tips += [(-0.66 * width, -0.35 * depth, hz - 32), (-0.6 * width, 0.2 * depth, hz + 45)]
    portal += _draw_vessel_tree(rng, right, np.array(right_tips) + rng.normal(0, 8, (4, 3)), 0.62 * thick, 2)
    left_tips = [(0.30 * width, 0.5 * depth, -42), (hx + 12, 0.75 * depth, -52)]
    portal += _draw_vessel_tree(rng, left, np.array(left_tips) + rng.normal(0, 6, (2, 3)), 0.5 * thick, 1)
    root = np.add(cava[2].start, (0, 2, 4))
    tips = [(-0.80 * width, -0.2 * depth, -70), (-0.45 * width, 0.6 * depth, -75), (0.2 * width, 0.5 * depth, -48)]
    tips += [(-0.62 * width, -0.55 * depth, -60)]
    hepatic = _draw_vessel_tree(rng, root, np.array(tips) + rng.normal(0, 8, (4, 3)), rng.uniform(4.5, 6.2), 2)
    return [Part(tuple(hepatic), hu["hepatic"], within="liver"), Part(tuple(portal), hu["portal"], within="liver")]


def _draw_vessel_tree(
    rng: np.random.Generator, root: np.ndarray, targets: Points, radius_mm: float, depth: int
) -> list[Capsule]:
    """Curved branches from ``root`` to each target, each with three side branches, ``depth`` times over."""
    branches: list[Capsule] = []
    for target in targets:
        target = np.asarray(target, float)
        length = float(np.linalg.norm(target - root))
        middle = (root + target) / 2 + rng.normal(0, 0.10 * length, 3)
        path = bend([root, middle, target], 3)
        radii = np.linspace(radius_mm, 0.5 * radius_mm, len(path))
        branches += tube(path, radii)
        if depth:
            for at in (len(path) // 3, 2 * len(path) // 3, len(path) - 2):
                heading = (target - root) / length
                side = rng.normal(0, 1, 3)
                side -= heading * (side @ heading)
                side /= np.linalg.norm(side)
                tip = path[at] + length * rng.uniform(0.35, 0.6) * (0.75 * heading + side) / 1.25
                branches += _draw_vessel_tree(rng, path[at], [tip], 0.68 * float(radii[at]), depth - 1)
    return branches


def draw_tumours(rng: np.random.Generator, trunk: Trunk, liver: Liver, phase: str) -> tuple[Tumour, ...]:
    """0 to 8 tumours with their centres inside the liver, 5 to 60 mm across whatever the patient's scale.

    If there is hardly any liver, none.
    """
    count = 0 if rng.random() < 0.22 else min(MAX_TUMOURS, int(rng.geometric(0.33)))
    low, high = liver.bounds_mm()
    points = rng.uniform(low, high, (6000, 3)).astype(np.float32)
    x, y, z = points.T
    depth = -liver.distance_mm(x, y, z, trunk.cavity_mm(x, y, z), trunk.diaphragm_mm(x, y, z))
    points, depth = points[depth > 3], depth[depth > 3]
    if not len(points):
        return ()
    # Tumours of one patient resemble each other.
    hyper = rng.random() < {"native": 0.05, "arterial": 0.5, "portal": 0.15, "late": 0.1}[phase]
    contrast = rng.uniform(18, 65) if hyper else -rng.uniform(14, 62)
    if rng.random() < 0.12:
        contrast = rng.uniform(-9, 9)
    rimmed, cored = rng.random() < 0.35, rng.random() < 0.3
    tumours: list[Tumour] = []
    for _ in range(count):
        radius = float(np.exp(rng.uniform(np.log(2.6), np.log(24.0)))) if rng.random() < 0.85 else rng.uniform(15, 27)
        for index in rng.integers(len(points), size=30):
            gaps = [np.linalg.norm(points[index] - t.shape.centre) - max(t.shape.half_axes) - radius for t in tumours]
            if depth[index] > 0.45 * radius and min(gaps, default=1.0) > 0:
                break
        own = contrast + rng.normal(0, 7)
        tumours.append(
            Tumour(
                shape=Ellipsoid(
                    tuple(points[index].tolist()),
                    tuple(np.clip(radius * rng.uniform(0.82, 1.1, 3), 2.8, 26).tolist()),
                    rng.uniform(0, 180),
                    rng.uniform(-40, 40),
                ),
                contrast_hu=own,
                rim_mm=min(rng.uniform(1.5, 5), 0.4 * radius) if rimmed else 0.0,
                rim_contrast_hu=rng.uniform(10, 50) if own < 0 else -rng.uniform(10, 40),
                core_fraction=rng.uniform(0.3, 0.65) if cored and radius > 7 else 0.0,
                core_contrast_hu=own - rng.uniform(15, 40),
                edge_mm=rng.uniform(0, 3.5) * min(1.0, radius / 10),
                roughness_mm=min(0.14 * radius, 2.5),
                texture_hu=rng.uniform(3, 14),
            )
        )
    return tuple(tumours)
