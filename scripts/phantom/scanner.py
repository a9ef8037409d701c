"""What does a scanner do to an image: with which slices, kernel, noise and artefacts?"""

import numpy as np
from scipy import ndimage

from scripts.phantom.arrays import multiply
from scripts.phantom.patient import WideScan

AIR_HU, METAL_HU, SOFT_HU, BONE_HU = -1000.0, 2900.0, -200.0, 350.0


def acquire(
    image: np.ndarray, scan: WideScan, spacing: tuple[float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """Return ``image`` as it comes out of a scanner and is resampled to the same grid.

    Slices of the scan's thickness are averaged, blurred or sharpened in plane, receive noise and artefacts, and are
    interpolated linearly.

    Args:
        image: float32 HU, (X, Y, Z).
        scan: with what.
        spacing: millimetres.
        rng: of the noise.
    """
    down, up = slice_weights(image.shape[2], spacing[2], scan.thickness_mm, scan.thickness_mm * scan.increment)
    averaged = len(down) < image.shape[2] or scan.thickness_mm > spacing[2]
    slices = multiply(image, down.T) if averaged else image.copy()
    for axis in (0, 1):
        ndimage.gaussian_filter1d(
            slices, scan.blur_mm / spacing[axis] / 2, axis=axis, output=slices, mode="nearest", truncate=3
        )
    if scan.sharpening:
        smooth = slices
        for axis in (0, 1):
            smooth = ndimage.gaussian_filter1d(smooth, 1.0, axis=axis, mode="nearest", truncate=2)
        slices += scan.sharpening * (slices - smooth)
    soft = np.clip((slices - SOFT_HU) / 100, 0, 1)
    if scan.bands_hu:
        shade = ndimage.gaussian_filter((slices > BONE_HU).sum(0, dtype=np.float32), (2, 0.5))
        slices -= soft * (scan.bands_hu * shade / (shade.max() + 1e-3))
    for share in scan.metal:
        _add_metal(slices, share, spacing, rng)
    slices += _draw_noise(slices.shape, scan, spacing, rng)
    return multiply(slices, up.T)


def slice_weights(
    count: int, spacing_mm: float, thickness_mm: float, increment_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """From ``count`` voxels along the body to slices (averages over their thickness), and back (linear)."""
    step = max(increment_mm, spacing_mm)
    centres = (
        np.arange(0, (count - 1) * spacing_mm + step, step) if step > spacing_mm else np.arange(count) * spacing_mm
    )
    voxels = np.arange(count) * spacing_mm
    thick = max(thickness_mm, spacing_mm)
    overlap = thick / 2 + spacing_mm / 2 - np.abs(centres[:, None] - voxels)
    down = np.clip(overlap, 0, spacing_mm)
    empty = down.sum(1) == 0
    down[empty, -1] = 1  # a last slice beyond the voxels
    up = np.clip(1 - np.abs(voxels[:, None] - centres) / step, 0, 1)
    return (down / down.sum(1, keepdims=True)).astype(np.float32), (up / up.sum(1, keepdims=True)).astype(np.float32)


def draw_streaks(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Noise float32 of ``shape`` that fades from side to side over a seventh of the width, and along no other axis."""
    nodes, columns = np.arange(8), np.linspace(0, 7, shape[0])
    fade = np.stack([np.interp(columns, nodes, node) for node in np.eye(8)], axis=1).astype(np.float32)
    return multiply(fade, rng.standard_normal((8, *shape[1:]), dtype=np.float32))


def _draw_noise(
    shape: tuple[int, ...], scan: WideScan, spacing: tuple[float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """Correlated in plane, more of it in the middle, with streaks from side to side."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    for axis in (0, 1):
        ndimage.gaussian_filter1d(
            noise, max(scan.grain_mm / spacing[axis] / 2, 0.2), axis=axis, output=noise, truncate=3
        )
    noise *= scan.noise_hu / noise[::4, ::4, ::4].std()
    if scan.streaks:
        noise += (scan.noise_hu * scan.streaks) * draw_streaks(shape, rng)
    x, y = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape[:2])
    noise *= (1.25 - 0.5 * np.clip(x[:, None] ** 2 + y**2, 0, 1))[..., None]
    return noise


def _add_metal(
    slices: np.ndarray, share: tuple[float, float, float], spacing: tuple[float, float, float], rng: np.random.Generator
) -> None:
    """A clip, stent or screw at a place given as shares of the grid, with the streaks it throws."""
    x, y = ((np.arange(n) - s * n) * step for n, s, step in zip(slices.shape, share, spacing[:2], strict=False))
    distance = np.hypot(x[:, None], y)
    angle = np.arctan2(y, x[:, None])
    star = sum(np.cos(k * angle + rng.uniform(0, 7)) for k in rng.integers(2, 9, 3)) / (0.4 + distance / 25)
    radius, strength = rng.uniform(1.5, 6), rng.uniform(20, 160)
    middle, reach = share[2] * slices.shape[2], rng.integers(1, 6)
    for k in range(max(0, int(middle) - reach), min(slices.shape[2], int(middle) + reach + 1)):
        slices[..., k] += strength * star
        slices[..., k][distance < radius] = METAL_HU


def find_outside_of_circle(shape: tuple[int, ...], spacing: tuple[float, float, float]) -> np.ndarray:
    """A mask (X, Y) of what is outside the largest circle over the longer side: nothing is reconstructed there."""
    x, y = ((np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing[:2], strict=False))
    return np.hypot(x[:, None], y) > max(x.max(), y.max())
