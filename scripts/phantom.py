"""What does an abdominal CT of a made-up patient look like?

Draws a patient (all lengths in millimetres of a body frame), then looks at it through a voxel grid: the same seed on
another grid is the same patient. Nothing here comes from a real scan.

    python -m scripts.phantom --output_dir data/phantoms --cases 20 --seed 0

The body frame has x to the patient's left, y to the front, z to the head (RAS+), its origin on the body axis at the
height of the top of the right diaphragm. Distances are signed, negative inside, and approximate away from a surface.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from scripts.errors import InputError, report_input_errors

AIR_HU, FAT_HU, GAS_HU = -1000.0, -100.0, -940.0
LIVER, TUMOUR = 1, 2
MAX_TUMOURS = 8
MIN_SIZE_VOXELS = 32
WARP_SLOPE = 0.045  # of the unit warp, per millimetre; three times the standard deviation
SLAB_VOXELS = 4_000_000

Box = tuple[slice, slice, slice]
Points = Sequence[Sequence[float]]
EVERYWHERE: Box = (slice(None),) * 3


@dataclass(frozen=True)
class Phantom:
    """A CT, its label map and where they are.

    Attributes:
        image: int16 HU, (X, Y, Z), slices on the last axis.
        label: uint8, same shape: 0 background, 1 liver, 2 tumour (inside the liver only).
        affine: (4, 4) float64, voxel index to RAS millimetres.
        description: what was drawn: phase, tumours (of the patient; a scan may miss some), spacing_mm, orientation.
    """

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray
    description: dict = field(default_factory=dict)


# --- distances ---------------------------------------------------------------------------------------------------


def smooth_min(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Union of two signed distances with the crease filleted over ``blend_mm``."""
    h = np.clip(0.5 + 0.5 / blend_mm * (b - a), 0, 1)
    return b + (a - b) * h - blend_mm * h * (1 - h)


def smooth_max(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Intersection of two signed distances with the edge rounded over ``blend_mm``."""
    return -smooth_min(-a, -b, blend_mm)


def superellipse_mm(x: np.ndarray, y: np.ndarray, half_x: np.ndarray, half_y: np.ndarray) -> np.ndarray:
    """Signed distance to |x / half_x|^2.5 + |y / half_y|^2.5 = 1, to first order: (rho - 1) / |grad rho|."""
    u, v = np.abs(x) / half_x, np.abs(y) / half_y
    u_15, v_15 = u * np.sqrt(u), v * np.sqrt(v)
    rho = (u * u_15 + v * v_15) ** 0.4 + 1e-3
    slope = np.sqrt((u_15 / half_x) ** 2 + (v_15 / half_y) ** 2) / (rho * np.sqrt(rho))
    return (rho - 1) / np.maximum(slope, 2e-3)


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid turned by ``angle_deg`` about z, then by ``tilt_deg`` about y."""

    centre: tuple[float, float, float]
    half_axes: tuple[float, float, float]
    angle_deg: float = 0.0
    tilt_deg: float = 0.0

    def bounds_mm(self) -> tuple[np.ndarray, np.ndarray]:
        turned = self.angle_deg or self.tilt_deg
        reach = np.full(3, max(self.half_axes)) if turned else np.array(self.half_axes)
        return self.centre - reach, self.centre + reach

    def distance_mm(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        x, y, z = x - self.centre[0], y - self.centre[1], z - self.centre[2]
        if self.angle_deg:
            c, s = float(np.cos(np.deg2rad(self.angle_deg))), float(np.sin(np.deg2rad(self.angle_deg)))
            x, y = c * x + s * y, c * y - s * x
        if self.tilt_deg:
            c, s = float(np.cos(np.deg2rad(self.tilt_deg))), float(np.sin(np.deg2rad(self.tilt_deg)))
            x, z = c * x + s * z, c * z - s * x
        a, b, c = self.half_axes
        x, y, z = x / a, y / b, z / c
        rho = np.sqrt(x * x + y * y + z * z) + 1e-3
        slope = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2) / rho
        return (rho - 1) / np.maximum(slope, 1 / max(self.half_axes))


@dataclass(frozen=True)
class Capsule:
    """A tube from ``start`` to ``end`` whose radius changes linearly."""

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    start_radius: float
    end_radius: float

    def bounds_mm(self) -> tuple[np.ndarray, np.ndarray]:
        ends, radius = np.array([self.start, self.end]), max(self.start_radius, self.end_radius)
        return ends.min(0) - radius, ends.max(0) + radius

    def distance_mm(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        dx, dy, dz = (e - s for s, e in zip(self.start, self.end, strict=True))
        x, y, z = x - self.start[0], y - self.start[1], z - self.start[2]
        t = np.clip((x * dx + y * dy + z * dz) / (dx * dx + dy * dy + dz * dz + 1e-6), 0, 1)
        off_axis = np.sqrt((x - t * dx) ** 2 + (y - t * dy) ** 2 + (z - t * dz) ** 2)
        return off_axis - (self.start_radius + t * (self.end_radius - self.start_radius))


Shape = Ellipsoid | Capsule


def tube(points: Points, radii: float | Sequence[float]) -> tuple[Capsule, ...]:
    """Capsules through ``points`` (N, 3) with one radius, or N of them."""
    points = [tuple(map(float, p)) for p in points]
    radii = [float(r) for r in np.broadcast_to(radii, len(points))]
    return tuple(map(Capsule, points[:-1], points[1:], radii[:-1], radii[1:]))


def bend(points: Points, per_segment: int = 4) -> np.ndarray:
    """Catmull-Rom curve through ``points`` (N, 3), ``per_segment`` points for each of theirs."""
    p = np.asarray(points, float)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = np.linspace(0, 1, per_segment, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.concatenate([*pieces, p[-2:-1]])


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


# --- random fields -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SmoothField:
    """A periodic random field of unit variance that varies over ``step_mm``: a cubic B-spline on a random lattice."""

    lattice: np.ndarray
    step_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator, step_mm: float, nodes: int) -> "SmoothField":
        # 0.479 is the mean over the cell of the sum of the squared B-spline weights, per axis.
        return cls(rng.standard_normal((nodes, nodes, nodes), dtype=np.float32) / 0.479**1.5, step_mm)

    def on_grid(self, axes_mm: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        """Values (X, Y, Z) float32 on the rectilinear grid with the coordinates ``axes_mm``."""
        wx, wy, wz = (self._weights(axis) for axis in axes_mm)
        values = np.tensordot(wz, self.lattice, (1, 2))  # (Z, x, y)
        values = np.tensordot(wx, values, (1, 1))  # (X, Z, y)
        return np.ascontiguousarray((wy @ values.transpose(0, 2, 1)).astype(np.float32, copy=False))

    def _weights(self, axis_mm: np.ndarray) -> np.ndarray:
        nodes = len(self.lattice)
        cell, t = np.divmod(axis_mm / self.step_mm, 1)
        basis = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        weights = np.zeros((len(axis_mm), nodes), np.float32)
        for offset, w in enumerate(basis):
            weights[np.arange(len(axis_mm)), (cell.astype(int) + offset - 1) % nodes] += w / 6
        return weights


# --- the trunk: what is defined by height and by distance to a wall ----------------------------------------------


@dataclass(frozen=True)
class Trunk:
    """Body wall, spine, ribs, diaphragm and lungs. ``*_half_mm`` are (left-right, front-back) half axes."""

    cavity_half_mm: tuple[float, float]
    muscle_mm: tuple[float, float, float]  # side, front, back
    fat_mm: tuple[float, float, float]  # side, front, back
    rib_drop_mm: float
    rib_phase_mm: float
    cartilage_from: float
    vertebra_half_mm: tuple[float, float]
    vertebra_phase_mm: float
    lordosis_mm: float
    taper: float  # how much narrower the front is than the middle
    dome_depth_mm: float
    left_dome_mm: float
    chest_slope: float

    RIB_STEP_MM = 27.0
    VERTEBRA_STEP_MM = 32.0

    def _level(self, z: np.ndarray, slope: float) -> np.ndarray:
        """Width relative to that at the diaphragm: narrower to the neck, to the waist and to the pelvic floor."""
        heights = [-470, -380, -300, -210, -110, 10, 110, 200, 290]
        widths = [0.72, 0.82, 0.95, 0.94, 1.0, 1.0, 0.97 - slope, 0.86 - 2 * slope, 0.6 - 2 * slope]
        return np.interp(z, heights, widths).astype(np.float32)

    def _narrowing(self, y: np.ndarray) -> np.ndarray:
        return 1 + self.taper * np.clip(y / self.cavity_half_mm[1], -0.7, 1.2)

    def cavity_mm(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Signed distance to the inner face of the chest and belly wall."""
        level = self._level(z, self.chest_slope)
        half_x, half_y = self.cavity_half_mm[0] * level, self.cavity_half_mm[1] * level
        return superellipse_mm(x * self._narrowing(y), y, half_x, half_y)

    def shell_mm(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, layers: Sequence[Sequence[float]]) -> np.ndarray:
        """Signed distance to the cavity grown by the (side, front, back) thicknesses in ``layers``."""
        side, front, back = (sum(layer[i] for layer in layers) for i in range(3))
        level = 0.4 * self._level(z, self.chest_slope) + 0.6
        half_x = self.cavity_half_mm[0] * level + side
        half_y = self.cavity_half_mm[1] * level + (front + back) / 2
        return superellipse_mm(x * self._narrowing(y), y - (front - back) / 2, half_x, half_y)

    def diaphragm_mm(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Height above the diaphragm (negative below it): a right dome, a left dome and the tendon between."""

        def dome(centre_x: float, centre_y: float, half_x: float, half_y: float, top: float, depth: float):
            r2 = np.minimum(((x - centre_x) / half_x) ** 2 + ((y - centre_y) / half_y) ** 2, 2.0)
            return top - depth * r2 * (0.35 + 0.65 * r2)

        width, depth = self.cavity_half_mm
        right = dome(-0.50 * width, 0.12 * depth, 0.52 * width, 1.12 * depth, 0.0, self.dome_depth_mm)
        left = dome(0.53 * width, 0.05 * depth, 0.49 * width, 1.05 * depth, self.left_dome_mm, self.dome_depth_mm)
        tendon = dome(0.05 * width, 0.25 * depth, 0.6 * width, 0.9 * depth, min(-14.0, self.left_dome_mm - 6), 60.0)
        return z - np.maximum(np.maximum(right, left), tendon)

    def spine_axis_y(self, z: np.ndarray) -> np.ndarray:
        """The y of the vertebral bodies' centres at height z: forward in the loin, backward in the chest."""
        return -0.53 * self.cavity_half_mm[1] + self.lordosis_mm * np.cos((z + 260) / 115)


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

    def bounds_mm(self) -> tuple[np.ndarray, np.ndarray]:
        bounds = np.array([shape.bounds_mm() for shape in (self.right, self.left)])
        return bounds[:, 0].min(0) - 5, bounds[:, 1].max(0) + 5

    def distance_mm(
        self, x: np.ndarray, y: np.ndarray, z: np.ndarray, cavity: np.ndarray, diaphragm: np.ndarray
    ) -> np.ndarray:
        """Signed distance, given those to the cavity's wall and to the diaphragm at the same points."""
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
        surface = smooth_min(surface, self.caudate.distance_mm(x, y, z), 5.0)
        for shape, gap_mm in self.carved:
            surface = smooth_max(surface, gap_mm - shape.distance_mm(x, y, z), 6.0)
        surface = smooth_max(surface, cavity + 2.5, 8.0)
        return smooth_max(surface, diaphragm + 3.0, 8.0)


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


@dataclass(frozen=True)
class Findings:
    """What only some patients have (0 or False where not), and how uneven the HU are."""

    arms_down: bool
    breasts_mm: float
    ascites_mm: float
    effusion_mm: float
    shading_hu: float
    liver_texture_hu: float


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
    scan: Scan


# --- drawing a patient -------------------------------------------------------------------------------------------

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


def _uniform(rng: np.random.Generator, *bounds: tuple[float, float]) -> tuple[float, ...]:
    return tuple(rng.uniform(low, high) for low, high in bounds)


def _near(point: Sequence[float], dx: float, dy: float, dz: float) -> np.ndarray:
    return np.array([point[0] + dx, point[1] + dy, point[2] + dz])


def _draw_hu(rng: np.random.Generator, phase: str) -> dict[str, float]:
    hu = {tissue: rng.uniform(*ranges[PHASES.index(phase)]) for tissue, ranges in PHASE_RANGES_HU.items()}
    fatty_drop = rng.uniform(15, 55) if rng.random() < 0.15 else 0.0
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


def _draw_trunk(rng: np.random.Generator) -> Trunk:
    half_x = rng.uniform(122, 149)
    fat = float(np.clip(rng.lognormal(2.75, 0.55), 7, 50))
    return Trunk(
        cavity_half_mm=(half_x, half_x * rng.uniform(0.64, 0.76)),
        muscle_mm=_uniform(rng, (14, 20), (9, 14), (28, 36)),
        fat_mm=(fat * rng.uniform(0.7, 1.2), fat * rng.uniform(0.6, 1.3), fat * rng.uniform(0.7, 1.0)),
        rib_drop_mm=rng.uniform(105, 150),
        rib_phase_mm=rng.uniform(0, Trunk.RIB_STEP_MM),
        cartilage_from=rng.uniform(0.66, 0.76),
        vertebra_half_mm=_uniform(rng, (20, 25), (15.5, 19)),
        vertebra_phase_mm=rng.uniform(0, Trunk.VERTEBRA_STEP_MM),
        lordosis_mm=rng.uniform(4, 14),
        taper=rng.uniform(0.0, 0.2),
        dome_depth_mm=rng.uniform(75, 115),
        left_dome_mm=rng.uniform(-24, -4),
        chest_slope=rng.uniform(0, 0.06),
    )


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


def _draw_tumours(rng: np.random.Generator, trunk: Trunk, liver: Liver, phase: str) -> tuple[Tumour, ...]:
    """0 to 8 tumours with their centres inside the liver, 5 to 60 mm across whatever the patient's scale."""
    count = 0 if rng.random() < 0.22 else min(MAX_TUMOURS, int(rng.geometric(0.33)))
    low, high = liver.bounds_mm()
    points = rng.uniform(low, high, (6000, 3)).astype(np.float32)
    x, y, z = points.T
    depth = -liver.distance_mm(x, y, z, trunk.cavity_mm(x, y, z), trunk.diaphragm_mm(x, y, z))
    points, depth = points[depth > 3], depth[depth > 3]
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


def _draw_gut(rng: np.random.Generator, trunk: Trunk, hu: dict[str, float]) -> list[Part]:
    """Small bowel, colon, duodenum and mesenteric vessels."""
    width, depth = trunk.cavity_half_mm
    wall = {"wall_mm": 2.6, "wall_hu": hu["gut_wall"]}
    contrast_agent = rng.random() < 0.25
    parts: list[Part] = []

    def filling() -> dict:
        kind = rng.choice(4, p=[0.45, 0.2, 0.2, 0.15])
        if kind == 0:  # collapsed: all wall
            return {"hu": hu["gut_wall"] + rng.uniform(-25, 0), "texture_hu": 14.0}
        if kind == 1:
            return {"hu": rng.uniform(130, 320) if contrast_agent else rng.uniform(5, 35), "texture_hu": 6.0}
        if kind == 2:
            return {"hu": rng.uniform(15, 60), "texture_hu": 45.0}
        return {"hu": rng.uniform(10, 40), "gas_above_mm": rng.uniform(15, 60)}

    for _ in range(rng.integers(18, 27)):
        position = np.array(_uniform(rng, (-0.6 * width, 0.75 * width), (-0.1 * depth, 0.8 * depth), (-390, -130)))
        heading = rng.normal(0, 1, 3)
        points = [position]
        for _ in range(rng.integers(4, 7)):
            heading = 0.55 * heading / np.linalg.norm(heading) + 0.75 * rng.normal(0, 1, 3) * (1, 0.7, 0.8)
            position = position + rng.uniform(22, 32) * heading / np.linalg.norm(heading)
            low, high = (-0.72 * width, -0.2 * depth, -410), (0.8 * width, 0.82 * depth, -125)
            position = np.clip(position, low, high)
            points.append(position)
        path = bend(points, 2)
        radii = rng.uniform(9.5, 15) * rng.uniform(0.85, 1.15, len(path))
        parts.append(Part(tube(path, radii), roughness_mm=1.0, **filling(), **wall))

    head = (-30, -2, -122)
    duodenum = bend([(-26, 32, -116), (-46, 14, -120), (-47, -4, -160), (-10, -14, -178), (36, -8, -158)], 4)
    parts.append(Part(tube(duodenum, 11), roughness_mm=1.2, **filling(), **wall))
    pancreas = bend([(-28, 0, -150), head, (0, 8, -112), (34, -4, -98), (72, -26, -84)], 4)
    radii = rng.uniform(8, 11.5) * np.linspace(1.25, 0.8, len(pancreas))
    fatty = rng.uniform(4, 24)
    parts.append(Part(tube(pancreas, radii), hu["pancreas"] - fatty / 2, texture_hu=fatty, roughness_mm=2.2))

    sag = rng.uniform(-40, 10)
    frame = [
        (-0.68 * width, 0.0, -300),
        (-0.72 * width, -0.15 * depth, -215),
        (-0.60 * width, 0.15 * depth, rng.uniform(-170, -150)),
        (-0.30 * width, 0.62 * depth, -165 + sag),
        (0.10 * width, 0.72 * depth, -160 + sag),
        (0.48 * width, 0.60 * depth, -125 + sag / 2),
        (0.72 * width, 0.18 * depth, rng.uniform(-95, -65)),
        (0.76 * width, -0.35 * depth, -140),
        (0.74 * width, -0.30 * depth, -230),
        (0.55 * width, 0.0, -330),
        (0.1 * width, -0.2 * depth, -360),
    ]
    frame = np.array(frame) + rng.normal(0, 7, (len(frame), 3))
    path = bend(frame, 6)
    haustra = 1 + 0.16 * np.sin(np.arange(len(path)) * rng.uniform(1.8, 2.5))
    radii = rng.uniform(15, 23) * haustra * np.linspace(1.2, 0.75, len(path))
    cuts = [0, 13, 22, 33, 45, len(path) - 1]
    for start, stop in pairwise(cuts):
        section, kind = path[start : stop + 1], rng.choice(3, p=[0.45, 0.35, 0.2])
        section_radii = radii[start : stop + 1] * rng.uniform(0.7, 1.1)
        if kind == 0:
            content = {"hu": rng.uniform(-60, 30), "texture_hu": rng.uniform(60, 160)}
        elif kind == 1:
            content = {"hu": rng.uniform(10, 50), "texture_hu": 40.0, "gas_above_mm": section[:, 1].mean() - 6}
        else:
            content, section_radii = {"hu": hu["gut_wall"], "texture_hu": 25.0}, 0.6 * section_radii
        if kind == 0 and rng.random() < 0.6:
            content["gas_above_mm"] = section[:, 1].mean() + rng.uniform(0, 8)
        parts.append(Part(tube(section, section_radii), roughness_mm=1.4, **content, **wall | {"wall_mm": 2.2}))

    for _ in range(rng.integers(60, 110)):  # nodes and short vessels of the omenta and behind them
        start = np.array(_uniform(rng, (-0.2 * width, 0.75 * width), (-0.3 * depth, 0.75 * depth), (-190, -40)))
        length = rng.uniform(2, 40)
        end = start + length * rng.normal(0, 0.6, 3)
        middle = (start + end) / 2 + rng.normal(0, 0.2 * length, 3)
        vessel_hu = hu["portal"] if rng.random() < 0.6 else hu["gut_wall"] - 15
        parts.append(Part(tube(bend([start, middle, end], 3), rng.uniform(1.3, 3.2)), vessel_hu))
    for _ in range(34):  # mesenteric vessels, from the root outward
        start = np.array([rng.uniform(-15, 25), 5.0, rng.uniform(-210, -110)])
        end = np.array(_uniform(rng, (-0.6 * width, 0.7 * width), (0.1 * depth, 0.8 * depth), (-300, -90)))
        path = bend([start, (start + end) / 2 + rng.normal(0, 12, 3), end], 3)
        radii = rng.uniform(1.6, 3.2) * np.linspace(1, 0.6, len(path))
        parts.append(Part(tube(path, radii), hu["portal"] if rng.random() < 0.6 else hu["aorta"]))
    return parts


def _draw_stomach(rng: np.random.Generator, trunk: Trunk, hu: dict[str, float]) -> list[Part]:
    width, depth = trunk.cavity_half_mm
    swell = rng.uniform(0.65, 1.3)
    low = rng.uniform(-150, -110)
    path = bend(
        [
            (0.46 * width, -0.30 * depth, -42),
            (0.52 * width, 0.02 * depth, -68),
            (0.42 * width, 0.38 * depth, -100),
            (0.12 * width, 0.55 * depth, low),
            (-0.14 * width, 0.36 * depth, -118),
        ],
        5,
    )
    radii = np.interp(np.linspace(0, 1, len(path)), [0, 0.2, 0.5, 0.8, 1], [24, 36, 30, 22, 11]) * swell
    kind = rng.choice(4, p=[0.35, 0.25, 0.2, 0.2])
    if kind == 0:
        content = {"hu": rng.uniform(0, 35), "texture_hu": 8.0}
    elif kind == 1:
        content = {"hu": rng.uniform(20, 60), "texture_hu": 50.0}
    elif kind == 2:
        content = {"hu": rng.uniform(130, 350), "texture_hu": 10.0}
    else:
        content, radii = {"hu": hu["gut_wall"] - 10, "texture_hu": 18.0}, 0.75 * radii
    if rng.random() < 0.75:
        content["gas_above_mm"] = rng.uniform(0.15, 0.6) * depth
    gullet = bend([(6, -0.36 * depth, 180), (6, -0.34 * depth, 20), (16, -0.30 * depth, -30), path[0]], 4)
    return [
        Part(tube(gullet, 8), hu["muscle"] - 12, roughness_mm=1.0, within="body"),
        Part(tube(path, radii), **content, wall_mm=rng.uniform(3, 5.5), wall_hu=hu["gut_wall"], roughness_mm=2.4),
    ]


def _draw_retroperitoneum(
    rng: np.random.Generator, trunk: Trunk, hu: dict[str, float]
) -> tuple[list[Part], tuple[Capsule, ...], tuple[Capsule, ...], Ellipsoid]:
    """Muscles, great vessels, kidneys and adrenals; also the cava, the aorta and the right kidney by themselves."""
    width, depth = trunk.cavity_half_mm
    spine_y = {z: float(trunk.spine_axis_y(np.float64(z))) for z in (300, 60, -20, -60, -110, -170, -240, -300, -400)}
    front = {z: y + trunk.vertebra_half_mm[1] for z, y in spine_y.items()}
    parts = []
    for side in (-1, 1):
        psoas = [
            (side * 24, spine_y[-110], -125),
            (side * 33, front[-170] - 14, -170),
            (side * 42, front[-240] - 6, -240),
        ]
        psoas += [(side * 55, front[-300] + 4, -300), (side * 80, 0, -400)]
        parts.append(Part(tube(bend(psoas), np.linspace(6, 24, 17)), hu["muscle"], 5.0, 1.5, within="body"))
        crus = [(side * 18, front[-20] - 4, -18), (side * 17, front[-60] - 1, -60), (side * 13, front[-170] + 1, -175)]
        parts.append(Part(tube(bend(crus), np.linspace(5, 4, 9)), hu["muscle"], 3.0, 1.0))
        loin = Ellipsoid((side * 60, -0.86 * depth, -215), (27, 12, 85), side * 20)
        parts.append(Part((loin,), hu["muscle"], 5.0, 1.5, within="body"))

    kidneys = []
    for side, top in ((-1, rng.uniform(-150, -122)), (1, rng.uniform(-136, -104))):
        half = _uniform(rng, (23, 30), (20, 27), (46, 60))
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

    r_aorta, r_cava = rng.uniform(9, 13.5), rng.uniform(8.5, 12.5)
    aorta = [(18, front[60] - 8, 300), (16, front[60] - 4, 60), (10, front[-20] + 9, -20), (4, front[-110] + 13, -110)]
    aorta += [(3, front[-240] + 11, -240)]
    aorta = bend(np.array(aorta) + rng.normal(0, 2, (5, 3)), 2)
    aorta_tube = tube(aorta, np.linspace(1.1, 0.85, len(aorta)) * r_aorta)
    parts.append(Part(aorta_tube, hu["aorta"], within="body"))
    if rng.random() < 0.5:  # plaques
        for index in rng.integers(4, len(aorta), size=rng.integers(2, 9)):
            angle = rng.uniform(0, 2 * np.pi)
            plaque = aorta[index] + 0.95 * r_aorta * np.array([np.cos(angle), np.sin(angle), 0])
            parts.append(Part((Ellipsoid(tuple(plaque.tolist()), _uniform(rng, *[(1, 3.5)] * 3)),), 600.0))
    for side in (-1, 1):
        iliac = bend([(3, front[-240] + 10, -240), (side * 32, front[-300] + 14, -300), (side * 70, 30, -410)])
        parts.append(Part(tube(iliac, 6.5), hu["aorta"], within="body"))
        iliac[:, :2] += (5 * side, -12)
        parts.append(Part(tube(iliac, 7.5), hu["cava"], within="body"))
    cava = [(-20, 2, 15), (-25, front[-20] + 12, -18), (-25, front[-60] + 12, -60), (-24, front[-110] + 11, -110)]
    cava += [(-18, front[-240] + 9, -240)]
    cava = tube(bend(np.array(cava) + rng.normal(0, 1.5, (5, 3)), 2), r_cava)
    parts.append(Part(cava, hu["cava"], texture_hu=4.0, within="body"))
    for start, end in ((aorta[6], (0, 14, -105)), (aorta[6], (4, 16, -190)), (aorta[6], (50, -0.4 * depth, -125))):
        end = np.array(end, float)
        parts.append(Part(tube(bend([start, (start + end) / 2 + (0, 6, 0), end], 3), 3.4), hu["aorta"]))
    splenic = bend([(0, 4, -108), (30, -12, -98), (60, -22, -88), (0.66 * width, -0.3 * depth, -75)], 3)
    splenic[1:-1] += rng.normal(0, 3, (len(splenic) - 2, 3))
    parts.append(Part(tube(splenic, 4.2), hu["portal"]))
    return parts, cava, aorta_tube, kidneys[0]


def _draw_chest_and_pelvis(rng: np.random.Generator, trunk: Trunk, hu: dict[str, float]) -> list[Part]:
    width, depth = trunk.cavity_half_mm
    heart = np.array([14, 0.25 * depth, 34]) + rng.normal(0, 4, 3)
    size = rng.uniform(0.85, 1.15)
    heart_axes = size * np.array([60, 46, 48])
    fat_pad = Ellipsoid(tuple(_near(heart, 0, 4, -6).tolist()), tuple(_near(heart_axes, 10, 12, 8).tolist()), -25, 20)
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
    bladder = Ellipsoid((0, 0.2 * depth, -395), _uniform(rng, (22, 48), (20, 40), (18, 45)))
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


def _draw_liver(
    rng: np.random.Generator, trunk: Trunk, great_vessels: tuple[Capsule, ...], kidney: Ellipsoid
) -> tuple[Liver, list[Capsule]]:
    """The liver and the gallbladder in its fossa (no shapes where it has been removed)."""
    width, depth = trunk.cavity_half_mm
    hilum = (rng.uniform(-40, -20), rng.uniform(-2, 14), rng.uniform(-96, -76))
    hx, hy, hz = hilum
    normal = np.array([rng.uniform(0.10, 0.45), rng.uniform(-0.25, 0.05), -0.9])
    normal /= np.linalg.norm(normal)
    neck = np.array([hx - 8, hy + 22, hz - 12])
    fundus = neck + _uniform(rng, (-26, -4), (16, 34), (-48, -26))
    gallbladder = list(
        tube(bend([neck, (neck + fundus) / 2 + (-4, -2, 4), fundus], 2), np.linspace(5, rng.uniform(11, 19), 5))
    )
    if rng.random() < 0.12:
        gallbladder = []
    hilar_fat = [
        Ellipsoid((hx, hy, hz), _uniform(rng, (18, 26), (9, 14), (11, 17)), rng.uniform(-30, 10)),
        Capsule((hx, hy + 2, hz), (hx - 30, hy, hz + 4), 8.0, 3.0),
        Capsule((hx, hy + 2, hz), (hx + 32, hy + 24, hz + 14), 7.0, 4.0),
    ]
    (kx, ky, kz), (ka, kb, kc) = kidney.centre, kidney.half_axes
    behind_kidney = (kx + 17, ky - 25, kz + 2)
    perirenal = Ellipsoid(behind_kidney, (ka + 9, kb + 20, kc + 5), kidney.angle_deg, kidney.tilt_deg)
    spine = trunk.spine_axis_y(np.float64(-80))
    column = Capsule((4, float(spine) - 4, -250), (4, float(spine) - 4, 40), 30.0, 34.0)
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
        caudate=Ellipsoid((hx + 14, hy - 16, hz + 22), _uniform(rng, (12, 19), (9, 14), (22, 30)), 20.0),
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


def _draw_liver_vessels(
    rng: np.random.Generator, trunk: Trunk, liver: Liver, cava: tuple[Capsule, ...], hu: dict[str, float]
) -> list[Part]:
    width, depth = trunk.cavity_half_mm
    hx, _, hz = liver.hilum
    portal, hepatic = [], []
    hilum = np.array(liver.hilum)
    right, left = _near(hilum, -26, -2, 6), _near(hilum, 28, 22, 14)
    thick = rng.uniform(5.5, 7.5)
    portal += tube([hilum, right], [thick, 0.85 * thick]) + tube([hilum, left], [0.8 * thick, 0.7 * thick])
    right_tips = [(-0.70 * width, 0.5 * depth, hz + 10), (-0.78 * width, -0.45 * depth, hz + 18)]
    right_tips += [(-0.66 * width, -0.35 * depth, hz - 32), (-0.6 * width, 0.2 * depth, hz + 45)]
    portal += _draw_vessel_tree(rng, right, np.array(right_tips) + rng.normal(0, 8, (4, 3)), 0.62 * thick, 2)
    left_tips = [(0.30 * width, 0.5 * depth, -42), (hx + 12, 0.75 * depth, -52)]
    portal += _draw_vessel_tree(rng, left, np.array(left_tips) + rng.normal(0, 6, (2, 3)), 0.5 * thick, 1)
    root = _near(cava[2].start, 0, 2, 4)
    tips = [(-0.80 * width, -0.2 * depth, -70), (-0.45 * width, 0.6 * depth, -75), (0.2 * width, 0.5 * depth, -48)]
    tips += [(-0.62 * width, -0.55 * depth, -60)]
    hepatic += _draw_vessel_tree(rng, root, np.array(tips) + rng.normal(0, 8, (4, 3)), rng.uniform(4.5, 6.2), 2)
    return [Part(tuple(hepatic), hu["hepatic"], within="liver"), Part(tuple(portal), hu["portal"], within="liver")]


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw everything that is known of a patient and their scan before a grid is chosen."""
    phase = str(rng.choice(PHASES, p=PHASE_PROBABILITIES))
    hu = _draw_hu(rng, phase)
    trunk = _draw_trunk(rng)
    width, depth = trunk.cavity_half_mm
    deep, cava, aorta, right_kidney = _draw_retroperitoneum(rng, trunk, hu)
    liver, gallbladder = _draw_liver(rng, trunk, cava + aorta, right_kidney)
    hilum = np.array(liver.hilum)
    spleen = Ellipsoid(
        (rng.uniform(0.62, 0.72) * width, rng.uniform(-0.5, -0.3) * depth, rng.uniform(-72, -52)),
        _uniform(rng, (26, 40), (44, 62), (40, 66)),
        rng.uniform(-35, -8),
        rng.uniform(-10, 15),
    )
    behind = [
        *_draw_chest_and_pelvis(rng, trunk, hu),
        *_draw_gut(rng, trunk, hu),
        *_draw_stomach(rng, trunk, hu),
        Part((spleen,), hu["spleen"], texture_hu=4.0, roughness_mm=2.0),
        *deep,
    ]
    if gallbladder:
        bile = Part(tuple(gallbladder), hu["bile"], wall_mm=1.5, wall_hu=hu["muscle"])
        behind.append(bile)
        if rng.random() < 0.15:
            stone = Ellipsoid(gallbladder[-1].start, (rng.uniform(3, 8),) * 3)
            behind.append(Part((stone,), rng.uniform(60, 500), texture_hu=40.0))
    trunk_of_portal = bend([(0, 4, -112), (-12, 8, -102), hilum], 3)
    duct = bend([_near(hilum, -4, 6, 2), (-24, 8, -108), (-34, -2, -135)], 3)
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
        vessels=tuple(_draw_liver_vessels(rng, trunk, liver, cava, hu)),
        tumours=_draw_tumours(rng, trunk, liver, phase),
        after_liver=tuple(after),
        fields={
            "warp_x": SmoothField.draw(rng, 70.0, 12),
            "warp_y": SmoothField.draw(rng, 70.0, 12),
            "warp_z": SmoothField.draw(rng, 70.0, 12),
            "shading": SmoothField.draw(rng, 90.0, 10),
            "waves": SmoothField.draw(rng, 20.0, 30),
            "strands_a": SmoothField.draw(rng, 15.0, 36),
            "strands_b": SmoothField.draw(rng, 15.0, 36),
            "grain": SmoothField.draw(rng, 5.0, 56),
        },
        warp_mm=rng.uniform(2.5, 6),
        scale=tuple((rng.uniform(0.94, 1.1) * rng.uniform(0.96, 1.04, 3)).tolist()),
        rotation=_rotation(angles),
        shift_mm=_uniform(rng, (-25, 25), (-35, 35), (-300, 300)),
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


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3) about x, then y, then z, by ``angles`` in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


# --- looking at a patient through a grid -------------------------------------------------------------------------


class Slab:
    """Some slices of a scan while they are painted: HU over the body coordinates of each voxel centre.

    Arrays are float32 (X, Y, Z). Later paint covers earlier paint; at a surface they mix over ``soft_mm``.
    """

    def __init__(self, patient: Patient, axes_mm: tuple[np.ndarray, np.ndarray, np.ndarray], soft_mm: float):
        self.patient, self.axes_mm, self.soft_mm = patient, axes_mm, soft_mm
        self.shape = tuple(map(len, axes_mm))
        self.noise = {name: smooth.on_grid(axes_mm) for name, smooth in patient.fields.items()}
        self.warp = [np.clip(self.noise.pop(f"warp_{axis}"), -3, 3) * patient.warp_mm for axis in "xyz"]
        scanner = np.meshgrid(*(axis.astype(np.float32) for axis in axes_mm), indexing="ij", sparse=True)
        scanner = [axis - shift for axis, shift in zip(scanner, patient.shift_mm, strict=True)]
        # Scanner to body: undo the turn, then the size, then warp.
        self.body = [
            sum(float(row[i]) * scanner[i] for i in range(3)) / scale + bent
            for row, scale, bent in zip(patient.rotation.T, patient.scale, self.warp, strict=True)
        ]
        x, y, z = self.body
        self.cavity = patient.trunk.cavity_mm(x, y, z)
        self.diaphragm = patient.trunk.diaphragm_mm(x, y, z)
        self.liver = np.full(self.shape, 1e3, np.float32)  # distance to its surface, once placed
        self.hu = np.full(self.shape, AIR_HU, np.float32)
        self.label = np.zeros(self.shape, np.uint8)

    def find_box(self, low_mm: np.ndarray, high_mm: np.ndarray, margin_mm: float = 0.0) -> Box | None:
        """The voxels that can lie in the box of body coordinates ``low_mm`` to ``high_mm``, None if there are none."""
        middle, reach = (low_mm + high_mm) / 2, (high_mm - low_mm) / 2 + self.soft_mm + margin_mm
        largest_warp = 3 * self.patient.warp_mm
        box = self._find_span(middle, reach + largest_warp)
        if box:  # The warp hardly changes over something small: take it from the middle of the box.
            inside = tuple((span.start + span.stop) // 2 for span in box)
            far = np.linalg.norm(reach) + np.linalg.norm(middle - [axis[inside] for axis in self.body])
            slope = WARP_SLOPE * self.patient.warp_mm
            change = float(far) * slope / (1 - slope)
            if change < largest_warp:
                box = self._find_span(middle - [axis[inside] for axis in self.warp], reach + change)
        return box

    def _find_span(self, middle_mm: np.ndarray, reach_mm: np.ndarray) -> Box | None:
        """The voxels within ``reach_mm`` of ``middle_mm``, both in body coordinates as they are before the warp."""
        patient = self.patient
        centre = patient.rotation @ (middle_mm * patient.scale) + patient.shift_mm
        reach = np.abs(patient.rotation) @ (reach_mm * patient.scale)
        low, high = centre - reach, centre + reach
        spans = tuple(
            slice(*axis.searchsorted((a, b)).tolist()) for axis, a, b in zip(self.axes_mm, low, high, strict=True)
        )
        return None if any(span.start >= span.stop for span in spans) else spans

    def cover(self, distance_mm: np.ndarray, edge_mm: float = 0.0) -> np.ndarray:
        """The share of each voxel that is inside, from the distance at its centre; ``edge_mm`` blurs the edge more."""
        return np.clip(0.5 - distance_mm / (self.soft_mm + edge_mm), 0, 1)

    def paint(
        self,
        distance_mm: np.ndarray,
        hu: np.ndarray | float,
        where: Box | np.ndarray = EVERYWHERE,
        edge_mm: float = 0.0,
    ) -> None:
        """Mix ``hu`` into the voxels ``where`` (a box, or a mask) by the share of each that ``distance_mm`` covers."""
        self.hu[where] += self.cover(distance_mm, edge_mm) * (hu - self.hu[where])

    def compartment_mm(self, name: str, box: Box) -> np.ndarray | None:
        """Distance to the compartment that a part is cut to; None for the whole body."""
        if name == "body":
            return None
        if name == "liver":
            return self.liver[box]
        cavity = self.cavity[box] + 2.0
        if name == "cavity":
            return cavity
        above = self.diaphragm[box]
        return np.maximum(cavity, above + 3.0 if name == "abdomen" else -above)

    def paint_part(self, part: Part) -> None:
        found = [(shape, self.find_box(*shape.bounds_mm(), 3 * part.roughness_mm)) for shape in part.shapes]
        found = [(shape, box) for shape, box in found if box]
        distances = []
        for shape, box in found:
            distance = shape.distance_mm(*(axis[box] for axis in self.body))
            if part.roughness_mm:
                distance += part.roughness_mm * self.noise["waves"][box]
            if (limit := self.compartment_mm(part.within, box)) is not None:
                distance = np.maximum(distance, limit)
            distances.append(distance)
            if part.wall_mm:
                self.paint(distance, part.wall_hu, box)
        for (_, box), distance in zip(found, distances, strict=True):
            hu = part.hu
            if part.texture_hu:
                hu = hu + part.texture_hu * self.noise["grain"][box]
            if part.gas_above_mm is not None:
                hu = hu + self.cover(part.gas_above_mm - self.body[1][box]) * (GAS_HU - hu)
            self.paint(distance + part.wall_mm, hu, box)


def _paint_table(slab: Slab) -> None:
    """A curved couch under the back: a shell, foam, a floor."""
    patient, table, trunk = slab.patient, slab.patient.table, slab.patient.trunk
    if not table.present:
        return
    x, y, _ = np.meshgrid(*(axis.astype(np.float32) for axis in slab.axes_mm), indexing="ij", sparse=True)
    x = x - patient.shift_mm[0]
    back = trunk.cavity_half_mm[1] + trunk.muscle_mm[2] + trunk.fat_mm[2]
    top = patient.shift_mm[1] - patient.scale[1] * back - table.gap_mm
    below = top + table.curvature_per_mm * x**2 - y  # depth under the upper face
    for start, stop, half_width, hu in (
        (0.0, 3.5, 205.0, 180.0),
        (1.5, 1.5 + table.hollow_mm, 205.0, -950.0),
        (table.hollow_mm + 1.2, table.hollow_mm + 4.8, 180.0, 240.0),
    ):
        layer = np.maximum(np.maximum(start - below, below - stop), np.abs(x) - half_width)
        slab.paint(np.broadcast_to(layer, slab.shape), hu)


def _paint_wall(slab: Slab) -> None:
    """Skin, fat, muscles of the wall and back, cavity fat, ribs, hip bones, arms and breasts."""
    patient, trunk, hu = slab.patient, slab.patient.trunk, slab.patient.hu
    (x, y, z), waves, grain = slab.body, slab.noise["waves"], slab.noise["grain"]
    muscle = trunk.shell_mm(x, y, z, [trunk.muscle_mm]) + 1.2 * waves + 2.0 * slab.noise["shading"]
    skin = trunk.shell_mm(x, y, z, [trunk.muscle_mm, trunk.fat_mm])
    front = trunk.cavity_half_mm[1] + trunk.muscle_mm[1] + trunk.fat_mm[1]
    if patient.findings.breasts_mm:
        for side in (-1, 1):
            breast = Ellipsoid((side * 82, 0.80 * front, 62), (68, 18 + patient.findings.breasts_mm, 62))
            skin = smooth_min(skin, breast.distance_mm(x, y, z), 20.0)
    groove = Ellipsoid((0, -trunk.cavity_half_mm[1] - trunk.muscle_mm[2] - trunk.fat_mm[2] - 9, -100), (16, 15, 900))
    skin = smooth_max(skin, -groove.distance_mm(x, y, z), 14.0)
    slab.paint(skin, hu["muscle"] - 35)
    fat = hu["fat"] + 5 * grain + 7 * waves
    slab.paint(skin + 2.0, fat)
    slab.paint(muscle, hu["muscle"] + 4 * grain)
    # Planes of fat between the layers of the wall, patchy.
    patchy = 0.7 - 0.9 * waves
    for plane in (12.5 + 1.5 * slab.noise["strands_a"], 0.62 * trunk.muscle_mm[2]):
        sheet = np.abs(slab.cavity - plane) - patchy
        slab.paint(np.maximum(np.maximum(sheet, muscle + 3.0), 4 - np.abs(x)), fat)
    # The long muscles of the back, each in a thin sheath of fat.
    depth = trunk.cavity_half_mm[1]
    back_box = slab.find_box(np.array([-85.0, -depth - 60, -2000]), np.array([85.0, -0.6 * depth, 2000]))
    if back_box:
        bx, by = x[back_box], y[back_box]
        back_y = -depth - 0.42 * trunk.muscle_mm[2]
        long_muscles = superellipse_mm(
            np.abs(bx) - 34, by - back_y, np.float32(29), np.float32(0.52 * trunk.muscle_mm[2])
        )
        long_muscles += 2.0 * waves[back_box] + 1.5 * slab.noise["strands_b"][back_box]
        inside = np.maximum(long_muscles, muscle[back_box] + 1.5)
        slab.paint(inside - 1.2 + 1.2 * waves[back_box], fat[back_box], back_box)
        marbling = 12.0 + 14.0 * np.maximum(waves[back_box], 0)
        slab.paint(inside, hu["muscle"] - 8 + marbling * grain[back_box], back_box)
    slab.paint(slab.cavity, hu["muscle"])
    mesentery = np.hypot(slab.noise["strands_a"], slab.noise["strands_b"])
    strands = 50 * np.clip(1 - 9 * np.abs(slab.noise["strands_a"]), 0, 1) * np.clip(waves, 0, 1)
    slab.paint(slab.cavity + 2.0, fat - 2 + strands + 130 * np.clip(1.1 - 5.5 * mesentery, 0, 1))
    _paint_ribs(slab)
    if patient.findings.arms_down:
        _paint_arms(slab)


def _paint_arms(slab: Slab) -> None:
    """Arms at the sides: skin, fat, muscle, a hollow bone."""
    trunk, hu, (x, y, z) = slab.patient.trunk, slab.patient.hu, slab.body
    shoulder = trunk.cavity_half_mm[0] + trunk.muscle_mm[0] + trunk.fat_mm[0]
    layers = ((41, hu["muscle"] - 35), (39, hu["fat"]), (33, hu["muscle"]), (11, 650.0), (7, 60.0))
    for side in (-1, 1):
        for radius, tissue_hu in layers:
            upper, lower = (side * (shoulder + 44), -35, 250), (side * (shoulder + 46), -30, -500)
            distance = Capsule(upper, lower, radius, 0.85 * radius).distance_mm(x, y, z)
            slab.paint(distance + 0.03 * radius * slab.noise["waves"], tissue_hu + 6 * slab.noise["grain"])


def _paint_ribs(slab: Slab) -> None:
    """Ribs as inclined rings in the wall, cartilage at their front, the sternum and the hip bones."""
    trunk = slab.patient.trunk
    shell = (slab.cavity > -3 - slab.soft_mm) & (slab.cavity < 14 + slab.soft_mm)
    (x, y, z), cavity = (axis[shell] for axis in slab.body), slab.cavity[shell]
    waves, strands, grain = (slab.noise[name][shell] for name in ("waves", "strands_b", "grain"))
    width, depth = trunk.cavity_half_mm
    around = np.arctan2(np.abs(x) / width, -y / depth) / np.float32(np.pi)  # 0 at the spine, 1 at the sternum
    turning = 0.80
    drop = trunk.rib_drop_mm * (np.minimum(around, turning) - 1.3 * np.maximum(around - turning, 0)) / turning
    height = z + drop + trunk.rib_phase_mm + 3 * waves + np.where(x > 0, 4.0, -4.0)
    index = np.floor(height / trunk.RIB_STEP_MM)
    off_axis = height - (index + 0.5) * trunk.RIB_STEP_MM
    # The lowest ribs end early: the twelfth, the eleventh, then the costal arch.
    lowest = -110 // trunk.RIB_STEP_MM
    reach = np.interp(index - lowest, [-1, 0, 1, 2, 4, 5], [0.0, 0.24, 0.40, 0.72, 0.86, 1.0]).astype(np.float32)
    section = np.hypot((cavity - 5.5) / 3.6, off_axis / 6.5)
    rib = np.maximum((section - 1) * 3.6, (around - reach) * 250)
    rib = np.maximum(rib, (0.06 - around) * 250)
    gristle = np.clip((around - trunk.cartilage_from) * 40, 0, 1)
    cortex = 560 + 140 * waves - gristle * (430 - 160 * np.maximum(strands, 0))
    slab.paint(rib, cortex, shell)
    marrow = 170 + 40 * grain - gristle * 70
    slab.paint(rib + 1.9, marrow, shell)
    sternum = superellipse_mm(x, cavity - 6, np.float32(17), np.float32(5.8)) + 1.2 * waves
    sternum = np.maximum(np.maximum(sternum, -70 - z), -y)
    slab.paint(sternum, 280 + 60 * waves, shell)
    slab.paint(sternum + 1.8, 110 + 30 * grain, shell)
    crest = -235 - 60 * around
    hip_bone = np.maximum(np.abs(cavity - 4) - 6 - 2 * waves, z - crest)
    hip_bone = np.maximum(hip_bone, (around - 0.66 - 0.001 * (z + 300)) * 250)
    hip_bone = np.maximum(hip_bone, (0.15 - around) * 200)
    slab.paint(hip_bone, 420.0, shell)
    slab.paint(hip_bone + 2.5, 160 + 40 * grain, shell)


def _paint_spine(slab: Slab) -> None:
    """Vertebrae that repeat along the body: body with cortex, disc, canal, arch, processes."""
    trunk, hu = slab.patient.trunk, slab.patient.hu
    box = slab.find_box(np.array([-50.0, -220, -3000]), np.array([50.0, 0, 3000]))
    if not box:
        return
    x, y, z = (axis[box] for axis in slab.body)
    waves, grain = slab.noise["waves"][box], slab.noise["grain"][box]
    y = y - trunk.spine_axis_y(z)
    step = trunk.VERTEBRA_STEP_MM
    phase = np.mod(z + trunk.vertebra_phase_mm, step) - step / 2  # 0 at mid height of a vertebra
    half_x, half_y = trunk.vertebra_half_mm
    flare = 2.6 * (2 * phase / step) ** 2
    body = superellipse_mm(x, y, np.float32(half_x - 1), np.float32(half_y - 1)) - flare + 0.6 * waves
    bone = np.maximum(body, np.abs(phase) - (step / 2 - 3.2))
    sides = np.abs(x)

    canal_y = -half_y - 9.5
    ring = np.hypot(x, (y - canal_y) * 1.15)
    arch = np.maximum(np.maximum(ring - 16.5, np.abs(phase + 2) - 11), y - canal_y - 12)
    transverse = np.hypot(y - canal_y + 2 + 0.3 * sides, phase + 0.15 * sides) - 5.2 + 0.05 * sides
    transverse = np.maximum(transverse, sides - 37)
    facets = np.maximum(np.hypot(sides - 17, y - canal_y + 9) - 8.5, np.abs(phase) - 13)
    tail = y - canal_y + 28  # the spinous process droops
    spinous = np.maximum(np.maximum(sides - 3.4 - 0.06 * tail, np.abs(tail) - 16), np.abs(phase + 4 + 0.35 * tail) - 9)
    # The short muscles around the arches.
    slab.paint(
        superellipse_mm(x, y - canal_y + 4, np.float32(33), np.float32(17)) + waves, hu["muscle"] + 9 * grain, box
    )
    slab.paint(body, 78 + 5 * grain, box)
    behind = np.minimum(np.minimum(arch, transverse), np.minimum(facets, spinous)) + 0.8 * waves
    slab.paint(behind, 400 + 60 * grain, box)
    slab.paint(behind + 2.2, hu["marrow"] + 40 + 60 * grain, box)
    slab.paint(bone, 290 + hu["marrow"] * 0.4 + 60 * waves, box)
    slab.paint(bone + 1.8, hu["marrow"] + 38 * grain + 22 * waves, box)
    canal = np.hypot(x / 1.25, y - canal_y) - 8.2
    slab.paint(canal, 5.0, box)
    slab.paint(canal + 2.2, 28.0, box)


def _paint_lungs(slab: Slab) -> None:
    patient, trunk, (x, y, z) = slab.patient, slab.patient.trunk, slab.body
    if float(slab.diaphragm.max()) < -10:
        return
    depth = trunk.cavity_half_mm[1]
    # The dome's muscle, seen where it separates fat from lung.
    slab.paint(np.maximum(np.abs(slab.diaphragm + 1.2) - 1.6, slab.cavity + 1.0), patient.hu["muscle"])
    middle = Ellipsoid((5, -0.66 * depth, 60), (27, 0.6 * depth, 400)).distance_mm(x, y, z)
    front = Ellipsoid((6, 0.75 * depth, 60), (18, 40, 120)).distance_mm(x, y, z)
    middle = smooth_min(middle, front, 25.0)
    high = Ellipsoid((4, 0.1 * depth, 150), (36, 0.75 * depth, 95)).distance_mm(x, y, z)
    middle = smooth_min(middle, high, 25.0) + 2 * slab.noise["waves"]
    lung = np.maximum(np.maximum(slab.cavity + 2.0, 0.5 - slab.diaphragm), -middle)
    slab.paint(np.maximum(slab.cavity + 1.0, np.maximum(-slab.diaphragm, -middle)), patient.hu["muscle"] - 20)
    sag = 70 * np.clip(-y / depth, -1, 1)
    tree = np.hypot(slab.noise["strands_a"], slab.noise["strands_b"])
    air = patient.hu["lung"] + sag + 22 * slab.noise["grain"]
    air += np.clip(1.4 - 6.0 * tree, 0, 1) * (20 - air)
    slab.paint(lung, air)
    if patient.findings.effusion_mm:
        fluid = np.maximum(lung, y + depth - patient.findings.effusion_mm)
        slab.paint(fluid, 8.0)


def _place_liver(slab: Slab) -> None:
    """Find the distance to the liver's surface; paint the free fluid around it, which the other organs displace."""
    patient, liver = slab.patient, slab.patient.liver
    box = slab.find_box(*liver.bounds_mm(), 8.0)
    if not box:
        return
    cavity, diaphragm = slab.cavity[box], slab.diaphragm[box]
    surface = liver.distance_mm(*(axis[box] for axis in slab.body), cavity, diaphragm)
    # Smooth where it lies on the diaphragm and the wall.
    free = np.clip(-np.maximum(cavity + 2.5, diaphragm + 3.0) / 8.0, 0, 1)
    slab.liver[box] = surface + liver.roughness_mm * slab.noise["waves"][box] * free
    if patient.findings.ascites_mm:
        fluid = np.maximum(slab.liver[box] - patient.findings.ascites_mm, np.maximum(cavity, diaphragm) + 2)
        slab.paint(fluid, 8.0, box)


def _paint_liver(slab: Slab) -> None:
    """The liver with its vessels and tumours, and its label."""
    patient = slab.patient
    texture = patient.findings.liver_texture_hu * slab.noise["grain"] + 2.5 * slab.noise["waves"]
    slab.paint(slab.liver, patient.hu["liver"] + texture)
    slab.label[slab.liver < 0] = LIVER
    for part in patient.vessels:
        slab.paint_part(part)
    for tumour in patient.tumours:
        _paint_tumour(slab, tumour)


def _paint_tumour(slab: Slab, tumour: Tumour) -> None:
    box = slab.find_box(*tumour.shape.bounds_mm(), 3 * tumour.roughness_mm + tumour.edge_mm)
    if not box:
        return
    distance = tumour.shape.distance_mm(*(axis[box] for axis in slab.body))
    distance = np.maximum(distance + tumour.roughness_mm * slab.noise["waves"][box], slab.liver[box])
    tissue = slab.patient.hu["liver"] + tumour.texture_hu * slab.noise["grain"][box]
    if tumour.rim_mm:
        slab.paint(distance, tissue + tumour.rim_contrast_hu, box, tumour.edge_mm)
    slab.paint(distance + tumour.rim_mm, tissue + tumour.contrast_hu, box, tumour.edge_mm)
    if tumour.core_fraction:
        core = distance + (1 - tumour.core_fraction) * min(tumour.shape.half_axes)
        slab.paint(core, tissue + tumour.core_contrast_hu, box, tumour.edge_mm)
    slab.label[box][distance < 0] = TUMOUR


def paint(
    patient: Patient, axes_mm: tuple[np.ndarray, np.ndarray, np.ndarray], soft_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """The patient without noise.

    Args:
        patient: who to look at.
        axes_mm: ascending scanner coordinates of the voxel centres along each axis.
        soft_mm: the width of boundaries.

    Returns:
        float32 HU and uint8 label, both (X, Y, Z).
    """
    slab = Slab(patient, axes_mm, soft_mm)
    _paint_table(slab)
    _paint_wall(slab)
    _paint_lungs(slab)
    _paint_spine(slab)
    _place_liver(slab)
    for part in patient.behind_liver:
        slab.paint_part(part)
    _paint_liver(slab)
    for part in patient.after_liver:
        slab.paint_part(part)
    slab.hu += np.where(slab.hu > -300, patient.findings.shading_hu * slab.noise["shading"], 0)
    return slab.hu, slab.label


def add_noise(
    image: np.ndarray, patient: Patient, spacing: tuple[float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """Blur by the scanner's point spread and the slice thickness, add correlated noise with streaks from side to side.

    Args:
        image: float32 HU, (X, Y, Z); changed in place.
        patient: whose scan settings are used.
        spacing: millimetres.
        rng: of the noise.

    Returns:
        ``image``.
    """
    scan = patient.scan
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    for axis in range(3):
        blur = scan.blur_slices if axis == 2 else scan.blur_mm / spacing[axis]
        grain = 0.4 if axis == 2 else max(0.45, scan.grain_mm / spacing[axis])
        ndimage.gaussian_filter1d(image, blur, axis=axis, output=image, mode="nearest", truncate=3)
        ndimage.gaussian_filter1d(noise, grain, axis=axis, output=noise, truncate=3)
    nodes, columns = np.arange(8), np.linspace(0, 7, image.shape[0])
    fade = np.stack([np.interp(columns, nodes, node) for node in np.eye(8)], axis=1).astype(np.float32)
    streaks = np.tensordot(fade, rng.standard_normal((8, *image.shape[1:]), dtype=np.float32), 1)
    noise *= scan.noise_hu / noise.std()
    image += noise
    streaks *= scan.noise_hu * scan.streaks
    image += streaks
    return image


def choose_spacing(patient: Patient, size: tuple[int, int, int]) -> tuple[float, float, float]:
    """A spacing in millimetres with which ``size`` voxels see the body as LiTS scans do."""
    trunk, scan = patient.trunk, patient.scan
    width = 2 * (trunk.cavity_half_mm[0] + trunk.muscle_mm[0] + trunk.fat_mm[0]) * patient.scale[0]
    depth = 2 * trunk.cavity_half_mm[1] + sum(trunk.muscle_mm[1:]) + sum(trunk.fat_mm[1:]) + 30
    in_plane = scan.field_of_view * max(width / size[0], depth * patient.scale[1] / size[1])
    along = float(np.clip(scan.length_mm / size[2], 0.7, 5.0))
    return (round(in_plane, 4), round(in_plane, 4), round(along, 2))


def _find_axes(patient: Patient, size: tuple[int, int, int], spacing: tuple[float, float, float]) -> list[np.ndarray]:
    """Scanner coordinates of the voxel centres: the body in the middle, the liver in the slab or cut by its end."""
    trunk = patient.trunk
    (_, front, back), (_, fat_front, fat_back) = trunk.muscle_mm, trunk.fat_mm
    length, liver_length = spacing[2] * (size[2] - 1), 165.0 * patient.scale[2]
    middle_z = -0.5 * liver_length + patient.scan.height * abs(length - liver_length) * 0.95
    middle_z += patient.scan.cut * 0.5 * min(length, liver_length)
    middle_y = patient.scale[1] * ((front + fat_front - back - fat_back) / 2 - 8)
    middle = _near(patient.shift_mm, 0.0, middle_y, middle_z)
    return [m + d * (np.arange(n) - (n - 1) / 2) for m, d, n in zip(middle, spacing, size, strict=True)]


def _is_whole(number: object) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def check_grid(size: Sequence[int], spacing: Sequence[float] | None) -> None:
    """Raise `InputError` unless ``size`` is three voxel numbers that are large enough and ``spacing`` None or valid."""
    three = isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 3
    if not three or not all(_is_whole(n) and n >= MIN_SIZE_VOXELS for n in size):
        raise InputError(
            f"size: expected three whole numbers of at least {MIN_SIZE_VOXELS}, as in 128,128,64, received {size!r}"
        )
    if spacing is not None and (np.shape(spacing) != (3,) or not min(spacing) > 0):
        raise InputError(f"spacing: expected three positive numbers of millimetres, received {spacing!r}")


def make_phantom(
    seed: int,
    size: tuple[int, int, int] = (128, 128, 64),
    spacing: tuple[float, float, float] | None = None,
    reorient: bool = True,
) -> Phantom:
    """Draw the patient of ``seed`` and scan them.

    Args:
        seed: of everything; the patient depends on nothing else, the noise also on the grid.
        size: voxels from right to left, back to front and foot to head, before any flip.
        spacing: millimetres along the same axes; None draws one that suits the body.
        reorient: flip axes at random, as LiTS headers do, the affine with them; False keeps RAS+.

    Returns:
        The phantom.

    Raises:
        InputError: ``size`` is below 32 along some axis, or ``spacing`` is not positive.
    """
    check_grid(size, spacing)
    patient_seed, flip_seed, noise_seed = np.random.SeedSequence(seed).spawn(3)
    patient = draw_patient(np.random.default_rng(patient_seed))
    spacing = tuple(map(float, spacing)) if spacing is not None else choose_spacing(patient, size)
    axes = _find_axes(patient, size, spacing)

    image, label = np.empty(size, np.float32), np.empty(size, np.uint8)
    thick = max(1, SLAB_VOXELS // (size[0] * size[1]))
    for start in range(0, size[2], thick):
        stop = start + thick
        image[..., start:stop], label[..., start:stop] = paint(
            patient, (axes[0], axes[1], axes[2][start:stop]), spacing[0]
        )
    image = add_noise(image, patient, spacing, np.random.default_rng(noise_seed))
    image = np.clip(np.rint(image), -1024, 3071).astype(np.int16)

    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [axis[0] for axis in axes]
    flips = np.random.default_rng(flip_seed).random(3) < ((0.5, 0.5, 0.15) if reorient else (0, 0, 0))
    for axis in np.flatnonzero(flips):
        affine[:3, 3] += affine[:3, axis] * (size[axis] - 1)
        affine[:3, axis] *= -1
    flipped = tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)
    return Phantom(
        image=np.ascontiguousarray(image[flipped]),
        label=np.ascontiguousarray(label[flipped]),
        affine=affine,
        description={
            "phase": patient.phase,
            "tumours": len(patient.tumours),
            "spacing_mm": spacing,
            "orientation": "".join(nib.aff2axcodes(affine)),
        },
    )


def write_phantoms(
    output_dir: str | os.PathLike,
    cases: int = 20,
    seed: int = 0,
    size: tuple[int, int, int] = (128, 128, 64),
    spacing: tuple[float, float, float] | None = None,
) -> list[tuple[Path, Path]]:
    """Write ``volume-N.nii.gz`` and ``segmentation-N.nii.gz`` for N = 0 ... ``cases`` - 1, as LiTS names them.

    Case N depends on ``seed`` and N only. A file appears under its name when it is complete.

    Args:
        output_dir: folder, made if it is missing; files of the same names are replaced.
        cases: how many patients.
        seed: not negative.
        size: as for `make_phantom`.
        spacing: as for `make_phantom`.

    Returns:
        The (volume, segmentation) paths.

    Raises:
        InputError: an argument is out of range, or ``output_dir`` is a file.
    """
    if not _is_whole(cases) or cases < 1:
        raise InputError(f"cases: expected a whole number of at least 1, received {cases!r}")
    if not _is_whole(seed) or seed < 0:
        raise InputError(f"seed: expected a whole number of at least 0, received {seed!r}")
    check_grid(size, spacing)
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; output_dir has to be a folder")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for case in tqdm(range(cases), desc="phantoms", unit="case"):
        case_seed = int(np.random.SeedSequence([seed, case]).generate_state(1, np.uint64)[0])
        phantom = make_phantom(case_seed, size, spacing)
        pair = folder / f"volume-{case}.nii.gz", folder / f"segmentation-{case}.nii.gz"
        for path, voxels in zip(pair, (phantom.image, phantom.label), strict=True):
            _save_nifti(path, voxels, phantom.affine)
        paths.append(pair)
    return paths


def _save_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    nifti = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    nifti.set_sform(affine, code=1)
    nifti.set_qform(affine, code=1)
    nifti.header.set_xyzt_units("mm")
    partial = path.with_name(f".partial-{path.name}")
    try:
        nib.save(nifti, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_and_say_where(
    output_dir: str, cases: int = 20, seed: int = 0, size: tuple[int, int, int] = (128, 128, 64)
) -> None:
    """Write LiTS-named CTs of made-up patients, with their liver and tumours labelled.

    Args:
        output_dir: folder for volume-N.nii.gz and segmentation-N.nii.gz.
        cases: how many patients.
        seed: the same seed gives the same patients.
        size: voxels from right to left, back to front and foot to head.
    """
    paths = write_phantoms(str(output_dir), cases, seed, size)
    many = "1 case is" if len(paths) == 1 else f"{len(paths)} cases are"
    print(f"{many} in {paths[0][0].parent} (volume-N.nii.gz, segmentation-N.nii.gz)")


def main() -> None:
    report_input_errors()
    fire.Fire(_write_and_say_where)


if __name__ == "__main__":
    main()
