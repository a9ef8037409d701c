import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    CropForegroundd,
    GaussianSmooth,
    Invertd,
    Orientationd,
    Resized,
    Spacingd,
)

from scripts import transforms
from scripts.transforms import RestoreGridd, find_body, find_foreground, restore_grid


def test_the_body_is_what_is_above_the_window():
    image = torch.tensor([[-1.0, -0.999, 0.0, 1.0]])
    assert find_body(image).tolist() == [[False, True, True, True]]


def test_all_of_nothing_but_air_counts_as_body():
    assert find_body(torch.full((1, 2, 2), -1.0)).all()


def test_foreground_is_every_class_but_background():
    assert find_foreground(torch.tensor([[0, 1, 2]])).tolist() == [[False, True, True]]


def test_all_of_a_label_without_foreground_counts_as_such():
    assert find_foreground(torch.zeros(1, 2, 2)).all()


SHAPE = (44, 38, 26)
TURNED = nib.eulerangles.euler2mat(x=0.1, y=-0.2, z=0.3)
SHEARED = np.array([[1, 0.1, 0], [0, 1, 0], [0.05, 0, 1]])
GRIDS = {  # directions of the three axes, mm between voxels
    "of the network's spacing": (np.eye(3), (1.5, 1.5, 1)),
    "finer": (np.eye(3), (0.8, 0.8, 0.7)),
    "coarser": (np.eye(3), (2.5, 2.0, 3.0)),
    "anisotropic": (np.eye(3), (0.7, 0.7, 5.0)),
    "flipped": (np.diag([-1, 1, -1]), (0.8, 0.8, 2.5)),
    "of other axes": (np.array([[0, 0, 1], [-1, 0, 0], [0, 1, 0]]), (0.8, 0.9, 2.5)),
    "oblique": (TURNED @ np.diag([-1, -1, 1]), (0.8, 0.8, 2.5)),
    "sheared": (TURNED @ SHEARED, (0.8, 0.8, 2.5)),
}


def preprocess(directions, spacing_mm, pixdim=(1.5, 1.5, 1.0), resize=()):
    """An image of a body amid air, as a network sees it, and the transforms that made it so."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions) @ np.diag(spacing_mm)
    affine[:3, 3] = (-31.5, 12.25, 101)
    image = torch.full((1, *SHAPE), -1.0)
    image[:, 5:-6, 4:-3] = 0.5
    image = MetaTensor(image, meta={"affine": affine, "original_affine": affine, "spatial_shape": np.array(SHAPE)})
    steps = Compose(
        [
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=pixdim, mode="bilinear"),
            *resize,
            CropForegroundd("image", source_key="image", select_fn=find_body, allow_smaller=True),
        ]
    )
    return steps({"image": image}), steps


def add_logits(data, bias, seed=0):
    """Three classes' logits in blobs. The lower the bias, the less background; blobs reach all faces of the body."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, *data["image"].shape[1:], generator=generator)
    logits = 8 * GaussianSmooth(sigma=2.0)(noise)
    logits[0] += bias
    return {**data, "pred": MetaTensor(logits).copy_meta_from(data["image"])}


def restore_plainly(data, steps):
    """By MONAI alone. What it makes of probabilities that only rounding has made other than 0 is background."""
    softmax = Activationsd("pred", softmax=True)
    inverse = Invertd("pred", transform=steps, orig_keys="image", nearest_interp=False)
    probabilities = inverse(softmax(data))["pred"]
    labels = AsDiscreted("pred", argmax=True)({"pred": probabilities})["pred"]
    return labels * (probabilities.sum(dim=0, keepdim=True) > 1e-3)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bias", [-0.5, 1.2])
def test_a_mask_returns_to_its_grid_as_by_softmax_inversion_of_all_classes_and_argmax(grid, bias, monkeypatch):
    monkeypatch.setattr(transforms, "SLAB_VOXELS", 5000)  # several slabs
    data, steps = preprocess(*GRIDS[grid])
    data = add_logits(data, bias)
    expected, restored = restore_plainly(data, steps), RestoreGridd("pred")(data)["pred"]
    assert (expected > 0).sum() > 50 and set(expected.unique().tolist()) == {0, 1, 2}
    assert restored.shape == (1, *SHAPE) and restored.dtype == torch.uint8
    differing = (restored.as_tensor() != expected.as_tensor()).sum()
    assert differing <= 1e-4 * (expected > 0).sum(), differing
    np.testing.assert_allclose(restored.affine, expected.affine, atol=1e-6)


@pytest.mark.parametrize("grid", ["finer", "oblique"])
def test_a_mask_returns_from_the_papers_plane_of_fixed_size(grid):
    resize = Resized("image", spatial_size=(30, 52, -1), mode="trilinear")
    data, steps = preprocess(*GRIDS[grid], pixdim=(-1, -1, 1.0), resize=[resize])
    data = add_logits(data, bias=0.3)
    expected, restored = restore_plainly(data, steps), RestoreGridd("pred")(data)["pred"]
    assert (restored.as_tensor() != expected.as_tensor()).sum() <= 1e-4 * (expected > 0).sum()


def test_a_mask_without_foreground_is_empty_on_the_whole_grid():
    data, _ = preprocess(*GRIDS["oblique"])
    restored = RestoreGridd("pred")(add_logits(data, bias=100))["pred"]
    assert restored.shape == (1, *SHAPE) and not restored.any()


def test_one_voxel_of_a_class_comes_back_where_it_was():
    data, _ = preprocess(np.diag([-1, 1, -1]), (1.5, 1.5, 1.0))
    data = add_logits(data, bias=100)
    data["pred"][2, 3, 7, 11] = 200
    inside = np.linalg.solve(data["image"].meta["original_affine"], data["image"].affine.numpy()) @ (3, 7, 11, 1)
    restored = RestoreGridd("pred")(data)["pred"]
    assert restored[(0, *inside[:3].round().astype(int))] == 2 and restored.count_nonzero() == 1


@pytest.mark.parametrize("slice_mm", [5.0, 10.0])
def test_what_lies_between_two_slices_or_beside_the_grid_is_lost_and_the_rest_is_not(slice_mm):
    grid = ((39, 39, 9), np.diag([0.75, 0.75, slice_mm, 1]))
    found = []
    for z in range(3, 38):
        logits = torch.zeros(2, 20, 20, 41)
        logits[0] = 5
        logits[1, 10, 10, z] = 9
        mask = restore_grid(logits, np.diag([1.5, 1.5, 1, 1]), grid[1], grid[0])
        assert mask.shape == (1, *grid[0])
        found.append(bool(mask.any()))
        assert found[-1] or z % slice_mm
    assert any(found) and not all(found)
    assert not restore_grid(logits, np.diag([1.5, 1.5, 1, 1]), grid[1] + np.eye(4)[:, 3:] * 1000, grid[0]).any()


def test_restoring_a_mask_leaves_the_image_and_its_metadata_alone():
    data, _ = preprocess(*GRIDS["finer"])
    data = add_logits(data, bias=0.0)
    affine, image = data["image"].affine.clone(), data["image"].clone()
    RestoreGridd("pred")(data)
    assert torch.equal(data["image"].affine, affine) and torch.equal(data["image"], image)
