"""What does an abdominal CT of a made-up patient look like?

Draws a patient (all lengths in millimetres of a body frame), then looks at it through a voxel grid: the same seed on
another grid is the same patient. Nothing here comes from a real scan.

    python -m scripts.phantom --output_dir data/phantoms --cases 20 --seed 0
    python -m scripts.phantom --output_dir data/wide --cases 300 --seed 0 --variety wide --processes 2

The body frame has x to the patient's left, y to the front, z to the head, its origin on the body axis at the height of
the top of the right diaphragm; `scan` turns it into the RAS+ of NIfTI, whose x runs to the patient's right.

From leaf to root: `shapes` and `randomness`, then `tissues`; the anatomy in `trunk`, `limbs`, `liver`, `gut` and
`organs`, put together in `patient` and, with all the variety there is, in `wide`; `slab` and `painting`, from a patient
to HU and label; `scanner`, what a scan adds to those; `scan`, from all that to a phantom; `write`.
"""

from scripts.phantom.painting import paint
from scripts.phantom.patient import draw_patient
from scripts.phantom.scan import Phantom, add_noise, make_phantom, make_wide_phantom
from scripts.phantom.write import write_phantoms

__all__ = ["Phantom", "add_noise", "draw_patient", "make_phantom", "make_wide_phantom", "paint", "write_phantoms"]
