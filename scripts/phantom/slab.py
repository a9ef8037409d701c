"""How is one thing after another painted into the voxels of a scan?"""

import numpy as np

from scripts.phantom.patient import Patient
from scripts.phantom.shapes import Box
from scripts.phantom.tissues import Part

EVERYWHERE: Box = (slice(None),) * 3
AIR_HU, GAS_HU = -1000.0, -940.0
WARP_SLOPE = 0.045  # of the unit warp, per millimetre; three times the standard deviation


class Slab:
    """Some slices of a scan while they are painted: HU over the body coordinates of each voxel centre.

    Arrays are float32 (X, Y, Z). Later paint covers earlier paint; at a surface they mix over ``soft_mm``.
    """

    def __init__(self, patient: Patient, axes_mm: tuple[np.ndarray, np.ndarray, np.ndarray], soft_mm: float):
        self.patient, self.axes_mm, self.soft_mm = patient, axes_mm, soft_mm
        self.shape = tuple(map(len, axes_mm))
        self.noise = {name: smooth.on_grid(axes_mm) for name, smooth in patient.fields.items()}
        self.warp = [np.clip(self.noise.pop(f"warp_{axis}"), -3, 3) * patient.warp_mm for axis in "xyz"]
        self.scanner = np.meshgrid(*(axis.astype(np.float32) for axis in axes_mm), indexing="ij", sparse=True)
        shifted = [axis - shift for axis, shift in zip(self.scanner, patient.shift_mm, strict=True)]
        # Scanner to body: undo the shift, the turn, then the size, then warp.
        self.body = [
            sum(float(row[i]) * shifted[i] for i in range(3)) / scale + bent
            for row, scale, bent in zip(patient.rotation.T, patient.scale, self.warp, strict=True)
        ]
        x, y, z = self.body
        self.cavity = patient.trunk.cavity_mm(x, y, z)
        self.diaphragm = patient.trunk.diaphragm_mm(x, y, z)
        self.lining = patient.findings.lining_mm * np.clip(self.noise["shading"] + 0.4 * self.noise["waves"], 0, 2)
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

    def find_box_in(self, outer: Box, low_mm: np.ndarray, high_mm: np.ndarray, margin_mm: float) -> Box | None:
        """As `find_box`, but of an array that holds the voxels in ``outer`` alone."""
        box = self.find_box(low_mm, high_mm, margin_mm)
        if not box:
            return None
        inner = tuple(
            slice(max(i.start, o.start) - o.start, min(i.stop, o.stop) - o.start)
            for i, o in zip(box, outer, strict=True)
        )
        return None if any(span.start >= span.stop for span in inner) else inner

    @staticmethod
    def find_slices(values: np.ndarray, least: float) -> Box:
        """The box of all slices from the first to the last in which some of ``values`` is at least ``least``."""
        found = np.flatnonzero(values.max((0, 1)) >= least)
        return (*EVERYWHERE[:2], slice(int(found[0]), int(found[-1]) + 1))

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
