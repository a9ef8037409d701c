import subprocess
import sys
from dataclasses import replace
from functools import lru_cache

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from scripts.errors import InputError
from scripts.phantom import Phantom, add_noise, draw_patient, make_phantom, paint, scan, write_phantoms
from scripts.phantom.arrays import multiply
from scripts.phantom.randomness import SmoothField
from scripts.phantom.shapes import Capsule, Ellipsoid, smooth_max, smooth_min, superellipse_mm

SMALL = (64, 64, 48)


@lru_cache(maxsize=64)
def small_phantom(seed: int, reorient: bool = True) -> Phantom:
    return make_phantom(seed, SMALL, reorient=reorient)


def world_mm(phantom: Phantom, mask: np.ndarray) -> np.ndarray:
    """RAS coordinates (N, 3) of the voxels in ``mask``."""
    return nib.affines.apply_affine(phantom.affine, np.argwhere(mask))


def volume_ml(phantom: Phantom, mask: np.ndarray) -> float:
    return float(mask.sum() * abs(np.linalg.det(phantom.affine[:3, :3])) / 1000)


def find_lungs(phantom: Phantom) -> np.ndarray:
    """Voxels of lung density deep inside the body, more than 2 cm from any air of under -950 HU."""
    image = ndimage.median_filter(phantom.image, 3)
    outside = ndimage.binary_dilation(image < -950, iterations=2)
    return (image > -930) & (image < -650) & ~outside


def best_window_dice(image: np.ndarray, liver: np.ndarray) -> float:
    """Dice of the best threshold pair on a 4 HU grid: 2 |window & liver| / (|window| + |liver|)."""
    edges = np.arange(-200, 401, 4)
    of_liver = np.concatenate([[0], np.histogram(image[liver], edges)[0].cumsum()])
    of_all = np.concatenate([[0], np.histogram(image, edges)[0].cumsum()])
    low, high = np.triu_indices(len(edges), 1)
    hit, size = of_liver[high] - of_liver[low], of_all[high] - of_all[low]
    return float((2 * hit / (size + liver.sum())).max())


# --- leaves ------------------------------------------------------------------------------------------------------


def test_ellipsoid_distance_is_exact_on_the_axes_of_a_sphere():
    distance = Ellipsoid((1, 2, 3), (10, 10, 10)).distance_mm(
        np.array([1.0, 16.0]), np.array([12.0, 2.0]), np.array([3.0, 3.0])
    )
    np.testing.assert_allclose(distance, [0, 5], atol=0.02)


def test_ellipsoid_turned_by_a_quarter_has_its_long_axis_across():
    turned = Ellipsoid((0, 0, 0), (20, 5, 5), angle_deg=90)
    x, y, z = np.array([0.0, 10.0]), np.array([18.0, 0.0]), np.array([0.0, 0.0])
    assert (turned.distance_mm(x, y, z) < 0).tolist() == [True, False]


def test_capsule_distance_follows_its_radius_from_end_to_end():
    capsule = Capsule((0, 0, 0), (0, 0, 10), 2, 4)
    x, y, z = np.array([5.0, 5.0, 0.0]), np.zeros(3), np.array([0.0, 10.0, 16.0])
    np.testing.assert_allclose(capsule.distance_mm(x, y, z), [3, 1, 2], atol=1e-5)


def test_superellipse_distance_is_right_near_its_axes():
    distance = superellipse_mm(np.array([99.0, 0.0]), np.array([0.0, 52.0]), np.float64(100), np.float64(50))
    np.testing.assert_allclose(distance, [-1, 2], atol=0.2)


def test_smooth_union_and_intersection_equal_the_sharp_ones_away_from_the_crease():
    a, b = np.array([-9.0, 5.0]), np.array([3.0, -6.0])
    np.testing.assert_allclose(smooth_min(a, b, 4.0), [-9, -6])
    np.testing.assert_allclose(smooth_max(a, b, 4.0), [3, 5])


def test_random_field_has_unit_variance_and_does_not_depend_on_the_grid():
    smooth = SmoothField.draw(np.random.default_rng(0), 10.0, 24)
    axis = np.arange(0, 240, 4.0)
    coarse = smooth.on_grid((axis, axis, axis))
    assert coarse.shape == (60, 60, 60)
    assert coarse.std() == pytest.approx(1, abs=0.05)
    fine = smooth.on_grid((np.arange(0, 240, 2.0), axis, axis[:3]))
    np.testing.assert_allclose(fine[::2], coarse[:, :, :3], atol=1e-4)


# --- phantoms ----------------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_phantom():
    first, second = small_phantom(3), make_phantom(3, SMALL)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.label, second.label)
    np.testing.assert_array_equal(first.affine, second.affine)
    assert first.description == second.description


def test_different_seeds_give_different_patients():
    first, second = small_phantom(3), small_phantom(4)
    assert (first.label != second.label).mean() > 0.01
    assert not np.array_equal(first.affine, second.affine)


@pytest.mark.parametrize("size", [(64, 64, 48), (65, 47, 33), (32, 96, 40)])
def test_image_and_label_have_the_size_and_types_asked_for(size):
    phantom = make_phantom(5, size)
    assert phantom.image.shape == phantom.label.shape == size
    assert (phantom.image.dtype, phantom.label.dtype, phantom.affine.dtype) == (np.int16, np.uint8, np.float64)


def test_labels_are_three_and_hu_span_air_to_bone():
    for seed in range(6):
        phantom = small_phantom(seed)
        assert set(np.unique(phantom.label)) <= {0, 1, 2}
        assert phantom.image.min() >= -1024
        assert 250 < phantom.image.max() <= 3071
        corner = phantom.image[:3, :3].mean()
        assert corner == pytest.approx(-1000, abs=25)


def test_tumours_take_their_voxels_from_the_liver_only():
    found = 0
    for seed in range(4):
        patient = draw_patient(np.random.default_rng(seed))
        axes = tuple(np.arange(-200, 200, 6.0) + shift for shift in patient.shift_mm)
        with_tumours = paint(patient, axes, 6.0)[1]
        without = paint(replace(patient, tumours=()), axes, 6.0)[1]
        np.testing.assert_array_equal(with_tumours > 0, without > 0)
        assert not (without == 2).any()
        found += int((with_tumours == 2).sum())
    assert found > 20


def test_liver_has_a_liver_s_volume():
    volumes = [volume_ml(p, p.label > 0) for p in map(small_phantom, range(14)) if _holds_whole_liver(p)]
    assert len(volumes) > 6
    assert min(volumes) > 600
    assert max(volumes) < 2800
    assert 1000 < np.median(volumes) < 1900


def _holds_whole_liver(phantom: Phantom) -> bool:
    liver = phantom.label > 0
    return not (liver[..., 0].any() or liver[..., -1].any())


def test_same_patient_on_two_grids_has_the_same_liver():
    coarse = make_phantom(8, (96, 96, 48), spacing=(4.0, 4.0, 5.0))
    fine = make_phantom(8, (128, 128, 80), spacing=(3.0, 3.0, 3.0))
    liver = coarse.label > 0
    assert volume_ml(coarse, liver) == pytest.approx(volume_ml(fine, fine.label > 0), rel=0.03)
    to_fine = np.linalg.inv(fine.affine) @ coarse.affine
    index = nib.affines.apply_affine(to_fine, np.argwhere(np.ones_like(liver))).T
    there = ndimage.map_coordinates((fine.label > 0).astype(np.float32), index, order=1).reshape(liver.shape) > 0.5
    assert 2 * (there & liver).sum() / (there.sum() + liver.sum()) > 0.97
    assert coarse.description["tumours"] == fine.description["tumours"]


def test_painting_in_thinner_slabs_leaves_no_seam(monkeypatch):
    whole = small_phantom(6)
    monkeypatch.setattr(scan, "SLAB_VOXELS", 64 * 64 * 7)
    pieces = make_phantom(6, SMALL)
    np.testing.assert_array_equal(pieces.label, whole.label)
    assert np.abs(pieces.image.astype(int) - whole.image).max() <= 1


def test_no_single_hu_window_finds_the_liver():
    """The best of all windows stays under Dice 0.75, on the image and on a smoothed one, case by case."""
    for seed in range(10):
        phantom = small_phantom(seed)
        liver = phantom.label > 0
        smoothed = ndimage.gaussian_filter(phantom.image.astype(np.float32), 0.8)
        assert best_window_dice(phantom.image, liver) < 0.75, seed
        assert best_window_dice(smoothed, liver) < 0.75, seed


def test_liver_is_on_the_right_and_under_the_lungs_by_the_affine():
    seen = 0
    for seed in range(14):
        phantom = small_phantom(seed)
        liver, lungs = world_mm(phantom, phantom.label > 0), find_lungs(phantom)
        body = world_mm(phantom, phantom.image > -300)
        assert np.median(liver[:, 0]) > np.median(body[:, 0]) + 20  # x of RAS+ grows towards the patient's right
        if lungs.sum() > 300:
            seen += 1
            assert np.median(world_mm(phantom, lungs)[:, 2]) > np.median(liver[:, 2]) + 20
    assert seen >= 5


def test_itk_too_finds_the_liver_on_the_patient_s_right(tmp_path):
    """ITK reads LPS: x grows towards the patient's left."""
    for volume, segmentation in write_phantoms(str(tmp_path), cases=4, seed=0, size=SMALL):
        image, label = itk.imread(str(volume)), itk.imread(str(segmentation))

        def left_mm(mask: np.ndarray, image=image) -> float:
            points = [image.TransformIndexToPhysicalPoint(index[::-1].tolist()) for index in np.argwhere(mask)[::200]]
            return float(np.median(np.array(points)[:, 0]))

        assert left_mm(itk.GetArrayViewFromImage(label) > 0) < left_mm(itk.GetArrayViewFromImage(image) > -300) - 20


def test_bone_of_the_spine_is_behind_the_body_s_middle():
    for seed in range(6):
        phantom = small_phantom(seed)
        bone = world_mm(phantom, phantom.image > 300)
        body = world_mm(phantom, phantom.image > -300)
        middle = np.abs(bone[:, 0] - np.median(body[:, 0])) < 25
        assert np.median(bone[middle, 1]) < np.median(body[:, 1]) - 20


def test_reoriented_header_describes_the_same_scan():
    flips = set()
    for seed in range(14):
        flipped, plain = small_phantom(seed), make_phantom(seed, SMALL, reorient=False) if seed < 4 else None
        flips.add(tuple(np.sign(np.diag(flipped.affine)[:3]).astype(int)))
        assert np.count_nonzero(flipped.affine[:3, :3]) == 3
        if plain:
            assert (np.diag(plain.affine) > 0).all()
            back = nib.as_closest_canonical(nib.Nifti1Image(flipped.image, flipped.affine))
            np.testing.assert_array_equal(np.asarray(back.dataobj), plain.image)
            np.testing.assert_allclose(back.affine, plain.affine)
    assert len(flips) >= 4


def test_spacing_and_field_of_view_vary_as_in_lits():
    spacings = np.array([small_phantom(seed).description["spacing_mm"] for seed in range(14)])
    fields = spacings * SMALL
    assert (fields[:, 0] > 270).all()
    assert (fields[:, 0] < 500).all()
    assert fields[:, 0].std() > 20
    assert (spacings[:, 2] >= 0.7).all()
    assert (spacings[:, 2] <= 5).all()
    assert fields[:, 2].std() > 20


def test_patients_have_no_to_eight_tumours_of_5_to_60_mm_dark_bright_and_rimmed_in_four_phases():
    patients = [draw_patient(np.random.default_rng(seed)) for seed in range(40)]
    counts = [len(patient.tumours) for patient in patients]
    assert {0, 1, 2, 8} <= set(counts) <= set(range(9))
    assert {patient.phase for patient in patients} == {"native", "arterial", "portal", "late"}
    tumours = [tumour for patient in patients for tumour in patient.tumours]
    contrasts = np.array([tumour.contrast_hu for tumour in tumours])
    assert (contrasts < -20).any()
    assert (contrasts > 20).any()
    assert (np.abs(contrasts) < 10).any()
    assert {tumour.rim_mm > 0 for tumour in tumours} == {True, False}
    for patient in patients:
        for tumour in patient.tumours:
            across_mm = 2 * np.array(tumour.shape.half_axes)
            assert across_mm.min() * min(patient.scale) >= 5
            assert across_mm.max() * max(patient.scale) <= 60
    across_mm = [2 * max(tumour.shape.half_axes) for tumour in tumours]
    assert min(across_mm) < 8
    assert max(across_mm) > 40


def test_tumours_show_in_the_image_with_their_contrast():
    shown = 0
    for seed in range(14):
        phantom = small_phantom(seed)
        inner = ndimage.binary_erosion(phantom.label == 2)
        patient = draw_patient(np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[0]))
        mean_contrast = np.mean([tumour.contrast_hu for tumour in patient.tumours]) if patient.tumours else 0
        if inner.sum() > 8 and abs(mean_contrast) > 25:
            shown += 1
            seen = phantom.image[inner].mean() - np.median(phantom.image[phantom.label == 1])
            assert seen * mean_contrast > 0
    assert shown >= 2


def test_noise_has_its_hu_and_is_correlated_between_neighbours_only():
    patient = draw_patient(np.random.default_rng(2))
    patient = replace(patient, scan=replace(patient.scan, noise_hu=12.0, streaks=0.0, grain_mm=0.8))
    noise = add_noise(np.zeros((80, 80, 40), np.float32), patient, (1.0, 1.0, 2.0), np.random.default_rng(0))
    assert noise.std() == pytest.approx(12, rel=0.01)
    # White noise blurred by a Gaussian of 0.8 voxels: exp(-d^2 / (4 * 0.8^2)) at d voxels, 0.68 at 1.
    for distance, expected in ((1, 0.68), (2, 0.21), (6, 0.0)):
        correlation = np.corrcoef(noise[distance:].ravel(), noise[:-distance].ravel())[0, 1]
        assert correlation == pytest.approx(expected, abs=0.04)


# --- files -------------------------------------------------------------------------------------------------------


def test_files_round_trip_with_lits_names_and_both_header_transforms(tmp_path):
    paths = write_phantoms(tmp_path / "new" / "folder", cases=2, seed=1, size=(32, 32, 32))
    names = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert names == ["segmentation-0.nii.gz", "segmentation-1.nii.gz", "volume-0.nii.gz", "volume-1.nii.gz"]
    assert [[path.name for path in pair] for pair in paths] == [[names[2], names[0]], [names[3], names[1]]]
    for volume, segmentation in paths:
        image, label = nib.load(volume), nib.load(segmentation)
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        np.testing.assert_allclose(image.affine, label.affine)
        for nifti in (image, label):
            qform, q_code = nifti.get_qform(coded=True)
            sform, s_code = nifti.get_sform(coded=True)
            assert (q_code, s_code) == (1, 1)
            np.testing.assert_allclose(qform, sform, atol=1e-3)


def test_written_voxels_are_those_of_the_phantom_of_the_same_case(tmp_path):
    (volume, segmentation), _ = write_phantoms(tmp_path, cases=2, seed=7, size=(32, 32, 32))
    case_seed = int(np.random.SeedSequence([7, 0]).generate_state(1, np.uint64)[0])
    phantom = make_phantom(case_seed, (32, 32, 32))
    np.testing.assert_array_equal(np.asarray(nib.load(volume).dataobj), phantom.image)
    np.testing.assert_array_equal(np.asarray(nib.load(segmentation).dataobj), phantom.label)
    np.testing.assert_allclose(nib.load(volume).affine, phantom.affine, atol=1e-3)


def test_a_case_does_not_depend_on_how_many_are_written(tmp_path):
    few = write_phantoms(tmp_path / "few", cases=1, seed=5, size=(32, 32, 32))
    many = write_phantoms(tmp_path / "many", cases=2, seed=5, size=(32, 32, 32))
    assert few[0][0].read_bytes() == many[0][0].read_bytes()
    assert many[0][0].read_bytes() != many[1][0].read_bytes()


def test_a_failing_write_leaves_no_file_behind(tmp_path, monkeypatch):
    def save_half(nifti, path):
        assert path.name.endswith(".nii.gz")  # nibabel chooses the format by the suffix
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nib, "save", save_half)
    with pytest.raises(OSError, match="disk full"):
        write_phantoms(tmp_path, cases=1, size=(32, 32, 32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cases", [0, -3, 1.5, True])
def test_a_number_of_cases_that_is_not_positive_is_an_input_error(tmp_path, cases):
    with pytest.raises(InputError, match="cases: expected a whole number of at least 1"):
        write_phantoms(tmp_path, cases=cases)


def test_a_negative_seed_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="seed: expected a whole number of at least 0, received -1"):
        write_phantoms(tmp_path, seed=-1)
    with pytest.raises(InputError, match="seed: expected a whole number of at least 0, received -1"):
        make_phantom(-1, SMALL)


@pytest.mark.parametrize("size", [(31, 64, 64), (64, 64), 64, "64,64,64", (64.0, 64, 64)])
def test_a_size_that_is_too_small_or_malformed_is_an_input_error(tmp_path, size):
    with pytest.raises(InputError, match="size: expected three whole numbers of at least 32"):
        write_phantoms(tmp_path, cases=1, size=size)
    with pytest.raises(InputError, match="size: expected three whole numbers of at least 32"):
        make_phantom(0, size)


@pytest.mark.parametrize("spacing", [(1, 0, 1), (1, float("nan"), 1), (1, 1, float("inf")), (1, 1)])
def test_a_spacing_that_is_not_positive_is_an_input_error(spacing):
    with pytest.raises(InputError, match="spacing: expected three positive numbers"):
        make_phantom(0, SMALL, spacing=spacing)


def test_an_output_folder_that_is_a_file_is_an_input_error(tmp_path):
    path = tmp_path / "taken"
    path.write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"taken: is a file; output_dir has to be a folder"):
        write_phantoms(path, cases=1)


def test_command_line_says_how_many_cases_are_where_and_reports_errors_in_one_line(tmp_path):
    def run(*options: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "scripts.phantom", "--output_dir", str(tmp_path), *options]
        return subprocess.run(command, capture_output=True, encoding="utf-8")

    done = run("--cases", "1", "--seed", "4", "--size", "32,32,32")
    assert done.returncode == 0
    assert done.stdout == f"1 case is in {tmp_path} (volume-N.nii.gz, segmentation-N.nii.gz)\n"
    failed = run("--cases", "0")
    assert failed.returncode == 1
    assert failed.stderr == "error: cases: expected a whole number of at least 1, received 0\n"


def test_products_are_numpys_by_as_many_threads_as_pytorch_may_have(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((4, 5, 6), (6, 7, 3)))
    np.testing.assert_allclose(multiply(a, b), np.tensordot(a, b, 1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        multiply(a.swapaxes(1, 2), b[:5, :, 0]), np.tensordot(a.swapaxes(1, 2), b[:5, :, 0], 1), atol=1e-5
    )
    called = []
    monkeypatch.setattr(torch, "tensordot", lambda *args: called.append(args) or torch.zeros(1))
    multiply(a, b)
    assert len(called) == 1


@pytest.mark.parametrize("variety", ["usual", "wide"])
def test_phantoms_are_replaced_and_somebody_s_cases_are_not(tmp_path, variety):
    settings = {"cases": 1, "seed": 0, "size": (32, 32, 32), "spacing": (9.0, 9.0, 9.0), "variety": variety}
    ((volume, segmentation),) = write_phantoms(tmp_path, **settings)
    write_phantoms(tmp_path, **settings)
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), segmentation)
    before = volume.read_bytes(), segmentation.read_bytes()
    with pytest.raises(InputError, match=r"segmentation-0\.nii\.gz: is there, and was not made by scripts\.phantom"):
        write_phantoms(tmp_path, **settings)
    assert (volume.read_bytes(), segmentation.read_bytes()) == before
