import json
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from scripts.errors import InputError
from scripts.phantom import Phantom, make_wide_phantom, paint, scan, wide, write_phantoms
from scripts.phantom.liver import draw_tumours
from scripts.phantom.scanner import acquire, find_outside_of_circle, slice_weights
from scripts.phantom.shapes import Ellipsoid
from scripts.phantom.slab import Slab
from scripts.phantom.tissues import PHASES, Part, draw_wide_hu
from scripts.phantom.trunk import draw_whole_trunk
from scripts.phantom.wide import LIVER_KINDS, VIEWS, draw_wide_patient

COARSE_MM = (12.0, 12.0, 4.0)  # along the body fine enough that 32 slices are no more than was to be seen
MILLILITRE_MM = (10.0, 10.0, 10.0)
CASES = 24


@lru_cache(maxsize=64)
def coarse_phantom(seed: int) -> Phantom:
    return make_wide_phantom(seed, COARSE_MM, reorient=False)


def draw_patient(seed: int):
    return draw_wide_patient(np.random.default_rng(seed))


def body_axes(patient, low_mm: float, high_mm: float, step_mm: float):
    """Axes over all of the patient's width and depth between two heights of the body."""
    spans = ((-260, 260), (-220, 220), (low_mm * patient.scale[2], high_mm * patient.scale[2]))
    return tuple(np.arange(*span, step_mm) + shift for span, shift in zip(spans, patient.shift_mm, strict=True))


# --- anatomy -----------------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_wide_phantom_and_another_seed_another():
    first, again, other = coarse_phantom(3), make_wide_phantom(3, COARSE_MM, reorient=False), coarse_phantom(4)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label, again.label)
    assert first.description == again.description
    assert first.description != other.description


def test_every_view_occurs_and_those_of_other_parts_have_no_liver():
    phantoms = [coarse_phantom(seed) for seed in range(CASES)]
    views = [phantom.description["view"] for phantom in phantoms]
    assert {"liver", "torso", "slab"} < set(views) <= set(VIEWS)
    empty = [not phantom.label.any() for phantom in phantoms]
    assert all(is_empty for is_empty, view in zip(empty, views, strict=True) if view in ("chest", "head"))
    assert not any(is_empty for is_empty, view in zip(empty, views, strict=True) if view in ("liver", "torso"))
    assert 0.05 <= np.mean(empty) <= 0.4


def test_livers_are_small_and_large_whole_and_cut_with_and_without_tumours():
    seen = [coarse_phantom(seed) for seed in range(CASES)]
    whole = [p.description["liver_ml"] for p in seen if p.description["view"] in ("liver", "torso")]
    assert min(whole) < 800
    assert max(whole) > 1700
    assert min(whole) > 100
    cut = [(p.label[..., 0] > 0).any() or (p.label[..., -1] > 0).any() for p in seen if p.label.any()]
    assert {True, False} == set(cut)
    assert {True, False} == {bool(p.description["tumour_ml"]) for p in seen if p.label.any()}
    kinds = {phantom.description["liver_kind"] for phantom in seen}
    assert {"usual"} < kinds <= set(LIVER_KINDS)


def test_what_a_resection_leaves_of_the_left_lobe_is_enough_for_a_body(monkeypatch):
    monkeypatch.setattr(wide, "LIVER_KIND_PROBABILITIES", tuple(float(kind == "left") for kind in LIVER_KINDS))
    millilitres = []
    for seed in range(10):
        patient = draw_patient(seed)
        assert patient.findings.liver_kind == "left"
        _, label = paint(patient, body_axes(patient, -260, 60, 8.0), 6.0)
        millilitres.append((label > 0).sum() * 8.0**3 / 1000)
    assert np.percentile(millilitres, 20) > 200
    assert np.median(millilitres) > 400
    assert max(millilitres) < 2500


def test_a_liver_of_which_nothing_is_left_has_no_tumours():
    patient = draw_patient(0)
    gone = replace(patient.liver, carved=((Ellipsoid((0.0, 0.0, 0.0), (2000.0,) * 3), 0.0),))
    rng = np.random.default_rng(0)
    assert any(draw_tumours(rng, patient.trunk, patient.liver, patient.phase) for _ in range(5))
    assert not any(draw_tumours(rng, patient.trunk, gone, patient.phase) for _ in range(5))


def test_liver_is_inside_the_body_and_has_tissue_s_hu():
    for seed in range(6):
        patient = draw_patient(seed)
        patient = replace(patient, findings=replace(patient.findings, shading_hu=0.0))
        hu, label = paint(patient, body_axes(patient, -260, 60, 8.0), 6.0)
        assert (label > 0).sum() > 200
        inside = ndimage.binary_fill_holes(hu > -500)
        assert inside[label > 0].all()
        assert np.percentile(hu[label > 0], 2) > -200
        assert np.median(hu[label == 1]) == pytest.approx(patient.hu["liver"], abs=10)


def test_a_body_has_two_legs_below_one_trunk_and_one_head():
    patient = replace(draw_patient(2), rotation=np.eye(3), warp_mm=0.0, scale=(1.0, 1.0, 1.0))
    patient = replace(patient, table=replace(patient.table, present=False))
    top, floor = patient.trunk.lung_top_mm, patient.trunk.floor_mm

    def pieces(z_mm: float) -> int:
        hu, _ = paint(patient, body_axes(patient, z_mm, z_mm + 4, 4.0), 4.0)
        found, count = ndimage.label(ndimage.binary_opening(hu[..., 0] > -300, iterations=2))
        return sum((found == index).sum() > 200 for index in range(1, count + 1))

    assert pieces(floor - 300) == 2
    assert pieces(-100) in (1, 2, 3)  # arms at the sides are pieces of their own
    assert pieces(top + 215) in (1, 2, 3)


def test_a_bladder_with_its_fluid_is_in_the_pelvis():
    """The trial's false liver was there. Loops of bowel may lie over its middle in some."""
    seen = []
    for seed in range(8):
        patient = replace(draw_patient(seed), rotation=np.eye(3), warp_mm=0.0, scale=(1.0, 1.0, 1.0))
        trunk = patient.trunk
        hollow = [part for part in patient.behind_liver if part.wall_mm and isinstance(part.shapes[0], Ellipsoid)]
        low = [part for part in hollow if part.shapes[0].centre[2] < trunk.sacrum_mm and part.within == "cavity"]
        bladders = [part for part in low if -5 <= part.hu <= 20]
        if bladders:
            axes = [
                np.array([at + shift]) for at, shift in zip(bladders[0].shapes[0].centre, patient.shift_mm, strict=True)
            ]
            seen.append(abs(float(paint(patient, axes, 2.0)[0].squeeze()) - bladders[0].hu) < 25)
    assert len(seen) >= 4
    assert np.mean(seen) > 0.5


def test_tumours_at_the_surface_push_it_out():
    patient = draw_patient(0)
    trunk, liver = patient.trunk, patient.liver
    low, high = liver.bounds_mm()
    points = np.random.default_rng(0).uniform(low, high, (4000, 3)).astype(np.float32)
    x, y, z = points.T
    at = (trunk.cavity_mm(x, y, z), trunk.diaphragm_mm(x, y, z))
    before = liver.distance_mm(x, y, z, *at)
    free = (before > 5) & (before < 12) & (at[0] < -25) & (at[1] < -25)
    centre = tuple(points[free][0].tolist())
    after = replace(liver, bulges=(Ellipsoid(centre, (8.0, 8.0, 8.0)),)).distance_mm(x, y, z, *at)
    assert before[free][0] > 0 > after[free][0]
    far = np.linalg.norm(points - centre, axis=1) > 30
    np.testing.assert_array_equal(after[far] < 0, before[far] < 0)


def test_looking_only_where_a_shape_can_be_finds_the_same_liver(monkeypatch):
    patient = draw_patient(1)
    axes = body_axes(patient, -240, 40, 7.0)
    label = paint(patient, axes, 5.0)[1]
    monkeypatch.setattr(Slab, "find_box_in", lambda *_: (slice(None),) * 3)
    everywhere = paint(patient, axes, 5.0)[1]
    assert label.any()
    assert (label != everywhere).sum() <= 0.002 * (label > 0).sum()


def test_fat_parts_the_liver_from_what_has_its_hu_but_for_cava_and_gallbladder():
    patient = draw_patient(1)
    everywhere = Part((Ellipsoid((0.0, 0.0, -90.0), (400.0,) * 3),), patient.hu["liver"], within="cavity")
    patient = replace(patient, behind_liver=(*patient.behind_liver, everywhere))
    axes = body_axes(patient, -240, 0, 3.0)

    def paint_with(sheath_mm: float):
        findings = replace(patient.findings, ascites_mm=0.0, sheath_mm=sheath_mm)
        return paint(replace(patient, findings=findings), axes, 2.4)

    (bare, label), (parted, same_label) = paint_with(0.0), paint_with(2.0)
    np.testing.assert_array_equal(label, same_label)
    changed = np.abs(parted - bare) > 1
    assert not (changed & ndimage.binary_erosion(label > 0, iterations=2)).any()
    around = ndimage.binary_dilation(label > 0) & (label == 0)
    unseen = around & (np.abs(bare - patient.hu["liver"]) < 25)  # neighbours that nothing parts from it
    dip = (bare - parted)[unseen]
    assert 0.5 < np.mean(dip > 40) < 0.95  # a film with gaps
    x, y, z = Slab(patient, axes, 2.4).body
    cava = patient.beside_liver[0]
    inside = np.min([shape.distance_mm(x, y, z) for shape in cava.shapes], axis=0) < -2
    assert inside.any()
    assert not (changed & inside).any()


# --- HU ----------------------------------------------------------------------------------------------------------


def test_hu_are_those_of_the_phase():
    rng = np.random.default_rng(0)
    drawn = {phase: [draw_wide_hu(rng, phase) for _ in range(150)] for phase in PHASES}
    mean = {phase: {key: np.mean([hu[key] for hu in many]) for key in many[0]} for phase, many in drawn.items()}
    assert 25 < mean["native"]["aorta"] < 55
    assert mean["arterial"]["aorta"] > 1.8 * mean["arterial"]["cava"]
    assert mean["portal"]["liver"] > mean["arterial"]["liver"] > mean["native"]["liver"]
    assert mean["portal"]["portal"] > mean["portal"]["liver"] + 15
    assert mean["native"]["portal"] < mean["native"]["liver"] + 5
    least = {phase: min(hu["liver"] for hu in many) for phase, many in drawn.items()}
    assert -10 <= least["native"] < 10  # a third and more of it fat
    assert least["arterial"] > 0
    assert least["late"] > 20  # contrast agent
    assert least["portal"] > 30
    for phase in PHASES:
        livers = np.array([hu["liver"] for hu in drawn[phase]])
        assert livers.max() <= 170
        like_spleen = np.abs(livers - [hu["spleen"] for hu in drawn[phase]]) < 8
        assert 0.1 < like_spleen.mean() < 0.8
        assert np.mean(livers < mean[phase]["spleen"] - 25) > 0.15  # fat
        assert -135 < min(hu["fat"] for hu in drawn[phase]) < max(hu["fat"] for hu in drawn[phase]) < -70


def test_builds_range_from_lean_to_obese():
    rng = np.random.default_rng(0)
    trunks = [draw_whole_trunk(rng) for _ in range(100)]
    fat = [trunk.fat_mm[0] for trunk in trunks]
    assert min(fat) < 6
    assert max(fat) > 35
    assert np.ptp([2 * trunk.skin_mm[0] for trunk in trunks]) > 120


# --- scanner -----------------------------------------------------------------------------------------------------


def test_slices_of_two_voxels_are_their_means_and_come_back_by_lines_between_them():
    down, up = slice_weights(4, 1.0, 2.0, 2.0)
    # Centres at 0, 2, 4 mm; a slice of 2 mm sees its own voxel whole and half of each neighbour.
    np.testing.assert_allclose(down, [[2 / 3, 1 / 3, 0, 0], [0, 0.25, 0.5, 0.25], [0, 0, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(up, [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5]], atol=1e-6)


def test_slices_thinner_than_the_grid_leave_it_as_it_is():
    down, up = slice_weights(5, 2.0, 0.7, 0.5)
    np.testing.assert_allclose(down, np.eye(5), atol=1e-6)
    np.testing.assert_allclose(up, np.eye(5), atol=1e-6)


def quiet_scan(**changes):
    still = {"noise_hu": 0.0, "streaks": 0.0, "bands_hu": 0.0, "metal": (), "sharpening": 0.0, "blur_mm": 0.1}
    return replace(draw_patient(0).scan, **{**still, **changes})


def test_a_scan_without_noise_keeps_what_is_uniform_and_blurs_a_step_over_its_thickness():
    rng = np.random.default_rng(0)
    even = acquire(np.full((20, 20, 30), 60, np.float32), quiet_scan(thickness_mm=5.0), (2.0, 2.0, 2.0), rng)
    np.testing.assert_allclose(even, 60, atol=1e-3)
    step = np.zeros((8, 8, 40), np.float32)
    step[..., 20:] = 100
    thin = acquire(step, quiet_scan(thickness_mm=1.0), (2.0, 2.0, 2.0), rng)
    thick = acquire(step, quiet_scan(thickness_mm=8.0, increment=1.0), (2.0, 2.0, 2.0), rng)
    between = [int(((values[4, 4] > 5) & (values[4, 4] < 95)).sum()) for values in (thin, thick)]
    assert between[0] == 0
    assert 2 <= between[1] <= 8  # 2 slices of 4 voxels at most


def test_noise_has_the_hu_of_the_scan():
    scan = quiet_scan(noise_hu=12.0, thickness_mm=1.0)
    noise = acquire(np.zeros((64, 64, 32), np.float32), scan, (2.0, 2.0, 2.0), np.random.default_rng(0))
    assert noise.std() == pytest.approx(12, rel=0.15)
    assert noise[24:40, 24:40].std() > 1.2 * noise[:6, :6].std()  # more where the body is thick


def test_metal_shines_and_throws_streaks_into_its_slices_only():
    scan = quiet_scan(metal=((0.5, 0.5, 0.25),), thickness_mm=1.0)
    image = acquire(np.zeros((40, 40, 40), np.float32), scan, (2.0, 2.0, 2.0), np.random.default_rng(0))
    assert image[20, 20, 10] > 2000
    assert np.abs(image[2, 20, 10]) > 0.1
    assert not image[..., 25:].any()


def test_outside_the_circle_are_the_corners_of_the_grid():
    outside = find_outside_of_circle((41, 41, 2), (1.0, 1.0, 1.0))
    assert outside[0, 0]
    assert not outside[20, 0]
    assert np.mean(~outside) == pytest.approx(np.pi / 4, abs=0.05)


def test_what_is_not_reconstructed_is_not_labelled(monkeypatch):
    patient = draw_patient(0)
    narrow = replace(patient.scan, view="liver", low_mm=-150, high_mm=0, field_of_view=(0.5, 0.5))
    narrow = replace(narrow, off_centre_mm=(-70.0, 20.0))  # in the middle of the liver
    for circle_hu, is_seen in ((-1024.0, False), (None, True)):
        scanned = replace(patient, scan=replace(narrow, circle_hu=circle_hu))
        monkeypatch.setattr(scan, "draw_wide_patient", lambda _, scanned=scanned: scanned)
        phantom = make_wide_phantom(0, (4.0, 4.0, 4.0), reorient=False)
        corners = find_outside_of_circle(phantom.image.shape, (4.0, 4.0, 4.0))
        assert (phantom.label[corners] > 0).any() == is_seen
        assert (phantom.image[corners] == -1024).all() != is_seen
        assert phantom.description["liver_ml"] == pytest.approx((phantom.label > 0).sum() * 0.064, abs=0.01)


# --- files -------------------------------------------------------------------------------------------------------


def test_processes_change_no_byte_and_each_case_is_described_as_its_label_is(tmp_path):
    alone = write_phantoms(tmp_path / "one", cases=3, seed=5, spacing=MILLILITRE_MM, variety="wide")
    write_phantoms(tmp_path / "two", cases=3, seed=5, spacing=MILLILITRE_MM, variety="wide", processes=2)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 9
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for case, (_, segmentation) in enumerate(alone):
        said = json.loads((tmp_path / "one" / f"phantom-{case}.json").read_text(encoding="utf-8"))
        label = np.asarray(nib.load(segmentation).dataobj)
        assert said["liver_ml"] == (label > 0).sum()  # voxels of 1 ml
        assert sum(said["tumour_ml"]) == (label == 2).sum()
        assert len(said["tumour_mm"]) == ndimage.label(label == 2)[1]
        for ml, mm in zip(said["tumour_ml"], said["tumour_mm"], strict=True):
            assert ml == pytest.approx(np.pi / 6 * (mm / 10) ** 3, rel=0.05)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"variety": "huge"}, "variety: expected one of usual, wide, received 'huge'"),
        ({"processes": 0}, "processes: expected a whole number of at least 1, received 0"),
        ({"spacing": (2, 0, 2), "variety": "wide"}, "spacing: expected three positive numbers"),
    ],
)
def test_options_out_of_range_are_input_errors(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        write_phantoms(tmp_path, cases=1, **options)


def test_command_line_writes_wide_phantoms(tmp_path):
    command = [sys.executable, "-m", "scripts.phantom", "--output_dir", str(tmp_path), "--cases", "1", "--seed", "5"]
    command += ["--variety", "wide", "--spacing_mm", "10"]
    subprocess.run(command, check=True, capture_output=True)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["phantom-0.json", "segmentation-0.nii.gz", "volume-0.nii.gz"]
    np.testing.assert_allclose(nib.load(tmp_path / "volume-0.nii.gz").header.get_zooms(), 10)
