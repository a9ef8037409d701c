"""How far is a point from a shape?

All lengths are in millimetres. Distances are signed, negative inside, and approximate away from a surface. Numbers of
shapes are Python floats: distances then stay float32 where coordinates are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Points = Sequence[Sequence[float]]
Box = tuple[slice, slice, slice]  # of voxels


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
