"""How are numbers, and fields that vary smoothly through the body, drawn at random?"""

from dataclasses import dataclass

import numpy as np

from scripts.phantom.arrays import multiply


def uniform(rng: np.random.Generator, *bounds: tuple[float, float]) -> tuple[float, ...]:
    return tuple(rng.uniform(low, high) for low, high in bounds)


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
        values = multiply(wx, self.lattice.astype(np.float32))  # (X, y, z)
        values = multiply(values.swapaxes(1, 2), wy.T)  # (X, z, Y)
        return multiply(values.swapaxes(1, 2), wz.T)

    def _weights(self, axis_mm: np.ndarray) -> np.ndarray:
        nodes = len(self.lattice)
        cell, t = np.divmod(axis_mm / self.step_mm, 1)
        basis = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        weights = np.zeros((len(axis_mm), nodes), np.float32)
        for offset, w in enumerate(basis):
            weights[np.arange(len(axis_mm)), (cell.astype(int) + offset - 1) % nodes] += w / 6
        return weights
