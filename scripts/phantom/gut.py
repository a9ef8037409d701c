"""What do the stomach, the bowel, the pancreas and the mesentery look like?"""

from itertools import pairwise

import numpy as np

from scripts.phantom.randomness import uniform
from scripts.phantom.shapes import bend, tube
from scripts.phantom.tissues import Part
from scripts.phantom.trunk import Trunk


def draw_gut(rng: np.random.Generator, trunk: Trunk, hu: dict[str, float]) -> list[Part]:
    """Small bowel, duodenum, pancreas, colon and mesenteric vessels."""
    bowel = _draw_small_bowel(rng, trunk, hu)
    pancreas = _draw_pancreas(rng, hu)
    colon = _draw_colon(rng, trunk, hu)
    return [*bowel, pancreas, *colon, *_draw_mesentery(rng, trunk, hu)]


def _draw_small_bowel(rng: np.random.Generator, trunk: Trunk, hu: dict[str, float]) -> list[Part]:
    """Loops that wander through the belly, then the duodenum."""
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
        position = np.array(uniform(rng, (-0.6 * width, 0.75 * width), (-0.1 * depth, 0.8 * depth), (-390, -130)))
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

    duodenum = bend([(-26, 32, -116), (-46, 14, -120), (-47, -4, -160), (-10, -14, -178), (36, -8, -158)], 4)
    parts.append(Part(tube(duodenum, 11), roughness_mm=1.2, **filling(), **wall))
    return parts


def _draw_pancreas(rng: np.random.Generator, hu: dict[str, float]) -> Part:
    pancreas = bend([(-28, 0, -150), (-30, -2, -122), (0, 8, -112), (34, -4, -98), (72, -26, -84)], 4)
    radii = rng.uniform(8, 11.5) * np.linspace(1.25, 0.8, len(pancreas))
    fatty = rng.uniform(4, 24)
    return Part(tube(pancreas, radii), hu["pancreas"] - fatty / 2, texture_hu=fatty, roughness_mm=2.2)


def _draw_colon(rng: np.random.Generator, trunk: Trunk, hu: dict[str, float]) -> list[Part]:
    """A frame around the belly in five sections, each with its own filling."""
    width, depth = trunk.cavity_half_mm
    wall = {"wall_mm": 2.2, "wall_hu": hu["gut_wall"]}
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
    parts = []
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
        parts.append(Part(tube(section, section_radii), roughness_mm=1.4, **content, **wall))
    return parts


def _draw_mesentery(rng: np.random.Generator, trunk: Trunk, hu: dict[str, float]) -> list[Part]:
    """Nodes and vessels."""
    width, depth = trunk.cavity_half_mm
    parts = []
    for _ in range(rng.integers(60, 110)):  # nodes and short vessels of the omenta and behind them
        start = np.array(uniform(rng, (-0.2 * width, 0.75 * width), (-0.3 * depth, 0.75 * depth), (-190, -40)))
        length = rng.uniform(2, 40)
        end = start + length * rng.normal(0, 0.6, 3)
        middle = (start + end) / 2 + rng.normal(0, 0.2 * length, 3)
        vessel_hu = hu["portal"] if rng.random() < 0.6 else hu["gut_wall"] - 15
        parts.append(Part(tube(bend([start, middle, end], 3), rng.uniform(1.3, 3.2)), vessel_hu))
    for _ in range(34):  # mesenteric vessels, from the root outward
        start = np.array([rng.uniform(-15, 25), 5.0, rng.uniform(-210, -110)])
        end = np.array(uniform(rng, (-0.6 * width, 0.7 * width), (0.1 * depth, 0.8 * depth), (-300, -90)))
        path = bend([start, (start + end) / 2 + rng.normal(0, 12, 3), end], 3)
        radii = rng.uniform(1.6, 3.2) * np.linspace(1, 0.6, len(path))
        parts.append(Part(tube(path, radii), hu["portal"] if rng.random() < 0.6 else hu["aorta"]))
    return parts


def draw_stomach(rng: np.random.Generator, trunk: Trunk, hu: dict[str, float]) -> list[Part]:
    """The gullet and the stomach."""
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
