"""What does a patient look like on a grid, in HU and as a label?"""

from functools import partial

import numpy as np

from scripts.phantom.liver import Tumour
from scripts.phantom.patient import Patient
from scripts.phantom.shapes import Capsule, Ellipsoid, smooth_max, smooth_min, superellipse_mm
from scripts.phantom.slab import Slab

LIVER, TUMOUR = 1, 2


def _paint_table(slab: Slab) -> None:
    """A curved couch under the back: a shell, foam, a floor."""
    patient, table = slab.patient, slab.patient.table
    if not table.present:
        return
    x, y, _ = slab.scanner
    x = x - patient.shift_mm[0]
    top = patient.shift_mm[1] - patient.scale[1] * patient.trunk.skin_mm[2] - table.gap_mm
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
    _, front, back = trunk.skin_mm
    if patient.findings.breasts_mm:
        for side in (-1, 1):
            breast = Ellipsoid((side * 82, 0.80 * front, 62), (68, 18 + patient.findings.breasts_mm, 62))
            skin = smooth_min(skin, breast.distance_mm(x, y, z), 20.0)
    groove = Ellipsoid((0, -back - 9, -100), (16, 15, 900))
    if box := slab.find_box(*groove.bounds_mm(), 15.0):
        skin[box] = smooth_max(skin[box], -groove.distance_mm(*(axis[box] for axis in slab.body)), 14.0)
    for limb in patient.limbs:
        for shape in limb.flesh:
            if box := slab.find_box(*shape.bounds_mm(), 30.0):
                distance = shape.distance_mm(*(axis[box] for axis in slab.body)) + 1.5 * waves[box]
                skin[box] = smooth_min(skin[box], distance, 22.0)
                muscle[box] = smooth_min(muscle[box], distance + limb.fat_mm + 2.0, 10.0)
    slab.paint(skin, hu["muscle"] - 35)
    fat = hu["fat"] + 5 * grain + 7 * waves
    slab.paint(skin + 2.0, fat)
    slab.paint(muscle, hu["muscle"] + 4 * grain - patient.findings.marbling_hu * np.clip(waves, 0, 2))
    if patient.limbs:  # fat between the muscles of the limbs, where the trunk's wall is far
        between = np.abs(slab.noise["strands_a"]) * 9 - 1.2 - 0.8 * waves
        slab.paint(np.maximum(np.maximum(between, muscle + 2.5), 22 - slab.cavity), fat)
    # Planes of fat between the layers of the wall, patchy.
    patchy = 0.7 - 0.9 * waves
    for plane in (12.5 + 1.5 * slab.noise["strands_a"], 0.62 * trunk.muscle_mm[2]):
        sheet = np.abs(slab.cavity - plane) - patchy
        slab.paint(np.maximum(np.maximum(sheet, muscle + 3.0), 4 - np.abs(x)), fat)
    _paint_back_muscles(slab, muscle, fat)
    slab.paint(slab.cavity, hu["muscle"])
    mesentery = np.hypot(slab.noise["strands_a"], slab.noise["strands_b"])
    strands = 50 * np.clip(1 - 9 * np.abs(slab.noise["strands_a"]), 0, 1) * np.clip(waves, 0, 1)
    slab.paint(slab.cavity + 2.0 + slab.lining, fat - 2 + strands + 130 * np.clip(1.1 - 5.5 * mesentery, 0, 1))
    if patient.findings.crowding > -2:  # bowel without a gap, as in the lean
        folds = np.clip(3 * (patient.findings.crowding + slab.noise["strands_b"]), 0, 1)
        inside = np.maximum(slab.cavity + 3.5, slab.diaphragm + 5)
        slab.hu += folds * slab.cover(inside) * (hu["gut_wall"] - 8 + 14 * grain - slab.hu)
    _paint_ribs(slab)
    if patient.findings.arms_down:
        _paint_arms(slab)


def _paint_back_muscles(slab: Slab, muscle: np.ndarray, fat: np.ndarray) -> None:
    """The long muscles of the back, each in a thin sheath of fat, inside the distance ``muscle``."""
    trunk = slab.patient.trunk
    depth = trunk.cavity_half_mm[1]
    box = slab.find_box(np.array([-85.0, -depth - 60, -2000]), np.array([85.0, -0.6 * depth, 2000]))
    if not box:
        return
    x, y, _ = (axis[box] for axis in slab.body)
    waves, strands, grain = (slab.noise[name][box] for name in ("waves", "strands_b", "grain"))
    back_y = -depth - 0.42 * trunk.muscle_mm[2]
    long_muscles = superellipse_mm(np.abs(x) - 34, y - back_y, np.float32(29), np.float32(0.52 * trunk.muscle_mm[2]))
    long_muscles += 2.0 * waves + 1.5 * strands
    inside = np.maximum(long_muscles, muscle[box] + 1.5)
    slab.paint(inside - 1.2 + 1.2 * waves, fat[box], box)
    marbling = 12.0 + 14.0 * np.maximum(waves, 0)
    slab.paint(inside, slab.patient.hu["muscle"] - 8 + marbling * grain, box)


def _paint_arms(slab: Slab) -> None:
    """Arms at the sides: skin, fat, muscle, a hollow bone."""
    hu, (x, y, z) = slab.patient.hu, slab.body
    side_mm = slab.patient.trunk.skin_mm[0]
    layers = ((41, hu["muscle"] - 35), (39, hu["fat"]), (33, hu["muscle"]), (11, 650.0), (7, 60.0))
    for side in (-1, 1):
        for radius, tissue_hu in layers:
            upper, lower = (side * (side_mm + 44), -35, 250), (side * (side_mm + 46), -30, -500)
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
    section = np.hypot((cavity - trunk.rib_depth_mm) / 3.6, off_axis / 6.5)
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
    crest = trunk.crest_mm - 60 * around
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
    size = trunk.vertebra_scale(z)
    x, y = x / size, (y - trunk.spine_axis_y(z)) / size
    step = trunk.VERTEBRA_STEP_MM
    phase = np.mod(z + trunk.vertebra_phase_mm, step) - step / 2  # 0 at mid height of a vertebra
    half_x, half_y = trunk.vertebra_half_mm
    flare = 2.6 * (2 * phase / step) ** 2
    body = superellipse_mm(x, y, np.float32(half_x - 1), np.float32(half_y - 1)) - flare + 0.6 * waves
    low, high = trunk.spine_ends_mm
    ends = np.maximum(low - z, z - high)
    body = np.maximum(body, ends)
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
        np.maximum(superellipse_mm(x, y - canal_y + 4, np.float32(33), np.float32(17)) + waves, ends),
        hu["muscle"] + 9 * grain,
        box,
    )
    slab.paint(body, 78 + 5 * grain, box)
    behind = np.minimum(np.minimum(arch, transverse), np.minimum(facets, spinous)) + 0.8 * waves
    behind = np.maximum(behind, ends)
    slab.paint(behind, 400 + 60 * grain, box)
    slab.paint(behind + 2.2, hu["marrow"] + 40 + 60 * grain, box)
    slab.paint(bone, 290 + hu["marrow"] * 0.4 + 60 * waves, box)
    slab.paint(bone + 1.8, hu["marrow"] + 38 * grain + 22 * waves, box)
    canal = np.maximum(np.hypot(x / 1.25, y - canal_y) - 8.2, ends)
    slab.paint(canal, 5.0, box)
    slab.paint(canal + 2.2, 28.0, box)


def _paint_lungs(slab: Slab) -> None:
    """The diaphragm, the lungs with their vessels on both sides of the mediastinum, and an effusion."""
    patient, trunk = slab.patient, slab.patient.trunk
    if float(slab.diaphragm.max()) < -10:
        return
    box = slab.find_slices(slab.diaphragm, -10.0)
    (x, y, z), cavity, diaphragm = (axis[box] for axis in slab.body), slab.cavity[box], slab.diaphragm[box]
    waves, strands_a, strands_b, grain = (
        slab.noise[name][box] for name in ("waves", "strands_a", "strands_b", "grain")
    )
    depth = trunk.cavity_half_mm[1]
    # The dome's muscle, seen where it separates fat from lung.
    slab.paint(np.maximum(np.abs(diaphragm + 1.2) - 1.6, cavity + 1.0), patient.hu["muscle"], box)
    middle = Ellipsoid((5, -0.66 * depth, 60), (27, 0.6 * depth, 400)).distance_mm(x, y, z)
    front = Ellipsoid((6, 0.75 * depth, 60), (18, 40, 120)).distance_mm(x, y, z)
    middle = smooth_min(middle, front, 25.0)
    high = Ellipsoid((4, 0.1 * depth, 150), (36, 0.75 * depth, 95)).distance_mm(x, y, z)
    middle = smooth_min(middle, high, 25.0) + 2 * waves
    lung = np.maximum(np.maximum(cavity + 2.0, 0.5 - diaphragm), -middle)
    slab.paint(np.maximum(cavity + 1.0, np.maximum(-diaphragm, -middle)), patient.hu["muscle"] - 20, box)
    sag = 70 * np.clip(-y / depth, -1, 1)
    tree = np.hypot(strands_a, strands_b)
    air = patient.hu["lung"] + sag + 22 * grain
    air += np.clip(1.4 - 6.0 * tree, 0, 1) * (20 - air)
    slab.paint(lung, air, box)
    if patient.findings.effusion_mm:
        fluid = np.maximum(lung, y + depth - patient.findings.effusion_mm)
        slab.paint(fluid, 8.0, box)


def _place_liver(slab: Slab) -> None:
    """Find the distance to the liver's surface; paint the free fluid around it, which the other organs displace."""
    patient, liver = slab.patient, slab.patient.liver
    box = slab.find_box(*liver.bounds_mm(), 8.0)
    if not box:
        return
    cavity, diaphragm = slab.cavity[box] + slab.lining[box], slab.diaphragm[box]
    surface = liver.distance_mm(*(axis[box] for axis in slab.body), cavity, diaphragm, partial(slab.find_box_in, box))
    # Smooth where it lies on the diaphragm and the wall.
    free = np.clip(-np.maximum(cavity + 2.5, diaphragm + 3.0) / 8.0, 0, 1)
    rough = liver.roughness_mm * slab.noise["waves"][box]
    if liver.nodules_mm:
        rough = rough + liver.nodules_mm * slab.noise["strands_b"][box]
    slab.liver[box] = surface + rough * free
    if patient.findings.ascites_mm:
        fluid = np.maximum(slab.liver[box] - patient.findings.ascites_mm, np.maximum(cavity, diaphragm) + 2)
        slab.paint(fluid, 8.0, box)


def _paint_sheath(slab: Slab) -> None:
    """The fat between the liver and its neighbours: a film of uneven thickness, with gaps."""
    sheath_mm, fat = slab.patient.findings.sheath_mm, slab.patient.hu["fat"]
    near = slab.liver < 2 * sheath_mm + slab.soft_mm
    thickness = sheath_mm * np.clip(0.8 + 0.7 * slab.noise["waves"][near], -1, 2)
    within = np.maximum(slab.cavity[near] + 1.0, slab.diaphragm[near] + 2.0)
    slab.paint(np.maximum(slab.liver[near] - thickness, within), fat, near)


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
    if patient.findings.sheath_mm:
        _paint_sheath(slab)
    for part in patient.beside_liver:
        slab.paint_part(part)
    _paint_liver(slab)
    for part in patient.after_liver:
        slab.paint_part(part)
    slab.hu += np.where(slab.hu > -300, patient.findings.shading_hu * slab.noise["shading"], 0)
    return slab.hu, slab.label
