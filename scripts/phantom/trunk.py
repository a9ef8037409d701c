"""What holds the organs: the body wall, spine, ribs, diaphragm and lungs, known by height and distance to a wall."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scripts.phantom.randomness import uniform
from scripts.phantom.shapes import smooth_max, superellipse_mm


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
    rib_depth_mm: float = 5.5  # of the ribs' middle behind the inner face of the wall

    RIB_STEP_MM = 27.0
    VERTEBRA_STEP_MM = 32.0
    crest_mm = -235.0  # the upper edge of the hip bones behind

    @property
    def spine_ends_mm(self) -> tuple[float, float]:
        """Heights of the lower and the upper end of the column."""
        return (-np.inf, np.inf)

    @property
    def skin_mm(self) -> tuple[float, float, float]:
        """From the body axis to the skin at the side, in front and behind, where the trunk is widest."""
        width, depth = self.cavity_half_mm
        layers = zip((width, depth, depth), self.muscle_mm, self.fat_mm, strict=True)
        return tuple(cavity + muscle + fat for cavity, muscle, fat in layers)

    def _level(self, z: np.ndarray) -> np.ndarray:
        """Width relative to that at the diaphragm: narrower to the neck, to the waist and to the pelvic floor."""
        heights = [-470, -380, -300, -210, -110, 10, 110, 200, 290]
        widths = [0.72, 0.82, 0.95, 0.94, 1.0, 1.0, 0.97 - self.chest_slope, 0.86 - 2 * self.chest_slope]
        widths += [0.6 - 2 * self.chest_slope]
        return np.interp(z, heights, widths).astype(np.float32)

    def _narrowing(self, y: np.ndarray) -> np.ndarray:
        return 1 + self.taper * np.clip(y / self.cavity_half_mm[1], -0.7, 1.2)

    def cavity_mm(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Signed distance to the inner face of the chest and belly wall."""
        level = self._level(z)
        half_x, half_y = self.cavity_half_mm[0] * level, self.cavity_half_mm[1] * level
        return superellipse_mm(x * self._narrowing(y), y, half_x, half_y)

    def shell_mm(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, layers: Sequence[Sequence[float]]) -> np.ndarray:
        """Signed distance to the cavity grown by the (side, front, back) thicknesses in ``layers``."""
        side, front, back = (sum(layer[i] for layer in layers) for i in range(3))
        level = 0.4 * self._level(z) + 0.6
        half_x = self.cavity_half_mm[0] * level + side
        half_y = self.cavity_half_mm[1] * level + (front + back) / 2
        return superellipse_mm(x * self._narrowing(y), y - (front - back) / 2, half_x, half_y)

    def vertebra_scale(self, z: np.ndarray) -> np.ndarray | float:
        """The size of the vertebrae at height z, relative to those of the loin."""
        return 1.0

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

    def spine_axis_y(self, z: np.ndarray | float) -> np.ndarray | float:
        """The y of the vertebral bodies' centres at height z: forward in the loin, backward in the chest."""
        return -0.53 * self.cavity_half_mm[1] + self.lordosis_mm * np.cos((z + 260) / 115)

    def spine_front_y(self, z: float) -> float:
        """The y of the vertebral bodies' front at height z."""
        return float(self.spine_axis_y(z)) + self.vertebra_half_mm[1]


@dataclass(frozen=True)
class WholeTrunk(Trunk):
    """A trunk from the neck to the thighs, with an outline of its own: shoulders above the lungs, hips below."""

    waist: float = 0.95  # widths relative to that at the diaphragm
    hips: float = 1.0
    lung_top_mm: float = 215.0
    floor_mm: float = -450.0  # of the pelvis
    sacrum_mm: float = -290.0

    @property
    def crest_mm(self) -> float:
        return self.sacrum_mm + 50.0

    @property
    def spine_ends_mm(self) -> tuple[float, float]:
        return (self.sacrum_mm, self.lung_top_mm + 145.0)

    def _level(self, z: np.ndarray) -> np.ndarray:
        top, floor, slope = self.lung_top_mm, self.floor_mm, self.chest_slope
        heights = [floor - 25, floor, floor + 40, -300, -210, -110, 10, 110, top - 40, top - 8, top + 15]
        widths = [0.05, 0.35, 0.62, 0.9 * self.hips, self.waist, 1.0, 1.0, 0.96 - slope, 0.74 - slope, 0.4, 0.08]
        return np.interp(z, heights, widths).astype(np.float32)

    def _outer_level(self, z: np.ndarray) -> np.ndarray:
        top, floor = self.lung_top_mm, self.floor_mm
        heights = [floor - 90, floor - 30, -330, -210, -110, 60, top - 60, top - 5, top + 40, top + 70]
        widths = [0.8 * self.hips, 1.0 * self.hips, self.hips, self.waist, 1.0, 1.0, 0.98, 0.85, 0.5, 0.05]
        return np.interp(z, heights, widths).astype(np.float32)

    def shell_mm(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, layers: Sequence[Sequence[float]]) -> np.ndarray:
        side, front, back = (sum(layer[i] for layer in layers) for i in range(3))
        level = self._outer_level(z)
        half_x = self.cavity_half_mm[0] * level + side
        half_y = self.cavity_half_mm[1] * (0.5 * level + 0.5) + (front + back) / 2
        trunk = superellipse_mm(x * self._narrowing(y), y - (front - back) / 2, half_x, half_y)
        ends = np.maximum(self.floor_mm - 45 - z, z - self.lung_top_mm - 40)
        return smooth_max(trunk, ends.astype(np.float32), 40.0)

    def vertebra_scale(self, z: np.ndarray) -> np.ndarray | float:
        return np.interp(z, [0, self.lung_top_mm, self.lung_top_mm + 60], [1.0, 0.75, 0.55]).astype(np.float32)

    def spine_axis_y(self, z: np.ndarray | float) -> np.ndarray | float:
        neck = np.clip((z - self.lung_top_mm + 60) / 90, 0, 1)
        axis = super().spine_axis_y(z) * (1 - neck) - 22 * neck
        return axis.astype(np.float32) if isinstance(axis, np.ndarray) else axis


def draw_whole_trunk(rng: np.random.Generator) -> WholeTrunk:
    """A trunk of any build."""
    half_x = rng.uniform(108, 160)
    depth = half_x * rng.uniform(0.56, 0.86)
    fat = float(np.clip(rng.lognormal(2.7, 0.7), 3, 65))
    return WholeTrunk(
        cavity_half_mm=(half_x, depth),
        muscle_mm=uniform(rng, (3, 20), (4, 14), (22, 40)),
        fat_mm=(fat * rng.uniform(0.6, 1.2), fat * rng.uniform(0.5, 1.4), fat * rng.uniform(0.5, 1.0)),
        rib_drop_mm=rng.uniform(95, 160),
        rib_phase_mm=rng.uniform(0, Trunk.RIB_STEP_MM),
        cartilage_from=rng.uniform(0.64, 0.78),
        vertebra_half_mm=uniform(rng, (18, 26), (14, 20)),
        vertebra_phase_mm=rng.uniform(0, Trunk.VERTEBRA_STEP_MM),
        lordosis_mm=rng.uniform(0, 18),
        taper=rng.uniform(-0.08, 0.22),
        dome_depth_mm=rng.uniform(55, 125),
        left_dome_mm=rng.uniform(-32, 6),
        chest_slope=rng.uniform(0, 0.1),
        rib_depth_mm=rng.uniform(2.8, 6.2),
        waist=rng.uniform(0.82, 1.12),
        hips=rng.uniform(0.95, 1.2),
        lung_top_mm=rng.uniform(190, 250),
        floor_mm=rng.uniform(-470, -420),
        sacrum_mm=rng.uniform(-305, -265),
    )


def draw_trunk(rng: np.random.Generator) -> Trunk:
    half_x = rng.uniform(122, 149)
    fat = float(np.clip(rng.lognormal(2.75, 0.55), 7, 50))
    return Trunk(
        cavity_half_mm=(half_x, half_x * rng.uniform(0.64, 0.76)),
        muscle_mm=uniform(rng, (14, 20), (9, 14), (28, 36)),
        fat_mm=(fat * rng.uniform(0.7, 1.2), fat * rng.uniform(0.6, 1.3), fat * rng.uniform(0.7, 1.0)),
        rib_drop_mm=rng.uniform(105, 150),
        rib_phase_mm=rng.uniform(0, Trunk.RIB_STEP_MM),
        cartilage_from=rng.uniform(0.66, 0.76),
        vertebra_half_mm=uniform(rng, (20, 25), (15.5, 19)),
        vertebra_phase_mm=rng.uniform(0, Trunk.VERTEBRA_STEP_MM),
        lordosis_mm=rng.uniform(4, 14),
        taper=rng.uniform(0.0, 0.2),
        dome_depth_mm=rng.uniform(75, 115),
        left_dome_mm=rng.uniform(-24, -4),
        chest_slope=rng.uniform(0, 0.06),
    )
