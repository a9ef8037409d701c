"""Tumours stay where a liver is, and small pieces become what surrounds them, by their volume in mm³."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.masks import drop_small_pieces, drop_tumors_outside_liver, reaches_border, remove_islands

SPACING_MM = (0.5, 2.0, 3.0)  # a voxel is 3 mm³


def make_mask(*pieces, shape=(12, 6, 6)):
    """A mask of pieces (class, slices); later ones cover earlier ones."""
    mask = torch.zeros(1, *shape)
    for index, place in pieces:
        mask[0][place] = index
    return MetaTensor(mask, affine=torch.diag(torch.tensor([*SPACING_MM, 1.0])))


LIVER = (1, np.s_[0:5, 0:4, 0:4])


def test_a_tumour_that_no_liver_touches_is_dropped_and_others_stay():
    inside, at_surface, at_corner = (2, np.s_[1:3, 1:3, 1:3]), (2, np.s_[5:6, 0, 0]), (2, np.s_[5, 4, 4])
    outside = (2, np.s_[8:10, 0:2, 0:2])
    kept = drop_tumors_outside_liver(make_mask(LIVER, inside, at_surface, at_corner, outside))
    assert torch.equal(kept, make_mask(LIVER, inside, at_surface, at_corner))


def test_a_tumour_that_touches_the_liver_through_another_tumour_stays():
    mask = make_mask(LIVER, (2, np.s_[5:11, 0, 0]))
    assert torch.equal(drop_tumors_outside_liver(mask), mask)


CLEANERS = [
    drop_tumors_outside_liver,
    lambda mask: remove_islands(mask, 100),
    lambda mask: drop_small_pieces(mask, 0.5),
]


@pytest.mark.parametrize("clean", CLEANERS)
def test_an_empty_mask_stays_empty(clean):
    assert not clean(make_mask()).any()


def test_tumours_without_any_liver_are_dropped():
    assert not drop_tumors_outside_liver(make_mask((2, np.s_[1:3, 1:3, 1:3]))).any()


def test_pieces_of_less_than_a_share_of_the_largest_are_dropped_with_their_tumours():
    island, tumor = (1, np.s_[8:11, 5, 5]), (2, np.s_[11, 5, 5])  # 4 voxels beside 80 of the liver
    mask = make_mask(LIVER, island, tumor)
    assert torch.equal(drop_small_pieces(mask, 0.05), mask)
    assert torch.equal(drop_small_pieces(mask, 0.051), make_mask(LIVER))
    assert torch.equal(drop_small_pieces(make_mask(island, tumor), 1.0), make_mask(island, tumor))


@pytest.mark.parametrize(("min_mm3", "left"), [(12, True), (12.1, False), (15, False)])
def test_an_island_of_exactly_the_smallest_volume_stays(min_mm3, left):
    island = (1, np.s_[8:12, 5, 5])  # 4 voxels, 12 mm³
    expected = make_mask(LIVER, island) if left else make_mask(LIVER)
    assert torch.equal(remove_islands(make_mask(LIVER, island), min_mm3), expected)


def test_volumes_are_those_of_an_oblique_grid():
    turn = np.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(SPACING_MM)
    mask = make_mask(LIVER, (1, np.s_[8:12, 5, 5]))
    mask.affine = torch.from_numpy(affine)
    assert remove_islands(mask, 12).sum() == 5 * 4 * 4 + 4
    assert remove_islands(mask, 12.1).sum() == 5 * 4 * 4


def test_a_small_tumour_in_the_liver_becomes_liver_and_one_outside_background():
    small, large, outside = (2, np.s_[0, 0, 0]), (2, np.s_[2:5, 2:4, 2:4]), (2, np.s_[9, 5, 5])
    cleaned = remove_islands(make_mask(LIVER, small, large, outside), 30)  # 1, 12 and 1 voxels
    assert torch.equal(cleaned, make_mask(LIVER, large))


def test_a_small_liver_with_a_tumour_is_measured_with_it():
    liver, tumor = (1, np.s_[8:10, 5, 5]), (2, np.s_[10:12, 5, 5])  # 6 mm³ each
    assert torch.equal(remove_islands(make_mask(liver, tumor), 6), make_mask(liver, tumor))
    whole = (1, np.s_[8:12, 5, 5])
    assert torch.equal(remove_islands(make_mask(liver, tumor), 12), make_mask(whole))
    assert not remove_islands(make_mask(liver, tumor), 13).any()


def test_what_is_outside_is_no_piece_however_small_the_scan():
    mask = make_mask(LIVER, (2, np.s_[1:3, 1:3, 1:3]))  # the scan has 1296 mm³, 24 of them tumour
    assert not remove_islands(mask, 1290).any()


def test_pieces_that_touch_by_a_corner_are_one():
    mask = make_mask((1, np.s_[0:2, 0, 0]), (1, np.s_[2:4, 1, 1]))
    assert torch.equal(remove_islands(mask, 12), mask)


@pytest.mark.parametrize("clean", CLEANERS)
def test_the_mask_given_is_not_changed_and_its_grid_is_kept(clean):
    mask = make_mask((2, np.s_[1:3, 1:3, 1:3]))
    before = mask.clone()
    cleaned = clean(mask)
    assert torch.equal(mask, before)
    assert torch.equal(cleaned.affine, mask.affine)


@pytest.mark.parametrize("end", range(6))
def test_a_mask_is_cut_off_where_it_reaches_any_face_of_the_image(end):
    mask = make_mask((1, np.s_[2:6, 2:4, 2:4]))
    assert not reaches_border(mask)
    mask[0].select(end // 2, -(end % 2))[2, 2] = 2
    assert reaches_border(mask)


def test_an_empty_mask_reaches_no_border():
    assert not reaches_border(make_mask())
