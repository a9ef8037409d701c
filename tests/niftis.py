"""Tiny cases as files, sound ones and broken ones."""

import json

import nibabel as nib
import numpy as np

from scripts.cases import Case

SHAPE = (12, 10, 48)
SPACING_MM = (1.5, 1.5, 2.0)  # a voxel is 4.5 mm³
AFFINE = np.diag([*SPACING_MM, 1.0])


def make_image(shape=SHAPE):
    """Air around a block of soft tissue."""
    image = np.full(shape, -1000, np.int16)
    image[2:-2, 2:-2, 2:-2] = 60
    return image


def make_label(shape=SHAPE):
    """A liver of 4 · 5 · 10 = 200 voxels (0.9 ml) of which 2 · 2 · 5 = 20 are tumour (0.09 ml)."""
    label = np.zeros(shape, np.uint8)
    label[3:7, 3:8, 20:30] = 1
    label[4:6, 4:6, 22:27] = 2
    return label


def save(file, array, affine=AFFINE):
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), file)
    return file


def save_case(folder, number=0, image=None, label=None, affine=AFFINE, label_affine=None, suffix=".nii"):
    """Write a LiTS-named case and return it as `find_cases` would; its image differs from those of other numbers."""
    image = set_voxel(make_image(), -1000 - number) if image is None else image
    label = make_label() if label is None else label
    image_file = save(folder / f"volume-{number}{suffix}", image, affine)
    label_file = save(
        folder / f"segmentation-{number}{suffix}", label, affine if label_affine is None else label_affine
    )
    return Case(f"volume-{number}", str(image_file), str(label_file))


def save_lits(folder, numbers):
    for number in numbers:
        save_case(folder, number)
    return folder


def write_json(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def pair(number, folder="."):
    return {"image": f"{folder}/volume-{number}.nii", "label": f"{folder}/segmentation-{number}.nii"}


def set_voxel(array, value):
    array = array.copy()
    array[0, 0, 0] = value
    return array


def truncate(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
