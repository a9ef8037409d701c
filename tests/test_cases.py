"""Cases are found as downloaded, and everything that makes one unusable or doubtful is named."""

import gzip
import struct
import tracemalloc
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from scripts.cases import (
    Case,
    CaseReport,
    check_case,
    find_cases,
    find_repeated,
    is_label_map,
    list_cases,
    read_volume,
)
from scripts.errors import InputError
from scripts.headers import check_size
from tests.niftis import (
    AFFINE,
    SHAPE,
    SPACING_MM,
    make_image,
    make_label,
    pair,
    save,
    save_case,
    save_lits,
    set_voxel,
    truncate,
    write_json,
)


def list_reasons(case, severity, **settings):
    return [finding.reason for finding in check_case(case, **settings).findings if finding.severity == severity]


def only_reason(case, severity, **settings):
    (reason,) = list_reasons(case, severity, **settings)
    return reason


# ---- finding ----


def test_lits_cases_are_found_in_batches_and_sorted_by_number(tmp_path):
    first = save_case(tmp_path / "Training Batch 1", 10)
    second = save_case(tmp_path / "Training Batch 2", 2, suffix=".nii.gz")
    assert find_cases(tmp_path) == [second, first]


def test_lits_labels_may_lie_in_another_folder_than_their_volumes(tmp_path):
    case = save_case(tmp_path / "volume_pt1", 3)
    (tmp_path / "segmentations").mkdir()
    label = Path(case.label).rename(tmp_path / "segmentations" / "segmentation-3.nii")
    assert find_cases(tmp_path) == [Case("volume-3", case.image, str(label))]


def test_lits_test_volumes_and_macos_leftovers_are_not_cases(tmp_path):
    case = save_case(tmp_path)
    for name in ("test-volume-0.nii", "._volume-1.nii", "._segmentation-1.nii", "volume-0_seg.nii.gz"):
        (tmp_path / name).touch()
    assert find_cases(tmp_path) == [case]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: does not exist; give an existing folder or datalist JSON"):
        find_cases(tmp_path / "nowhere")


def test_folder_without_cases_is_answered_with_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"no cases found; looked for volume-N.nii\[.gz\].*dataset.json"):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (
            "segmentation",
            r"volume-1\.nii: has no segmentation-1\.nii\[\.gz\]; add it, .* \(and 1 more: ",
        ),
        (
            "volume",
            r"segmentation-1\.nii: has no volume-1\.nii\[\.gz\]; add it, .* \(and 1 more: ",
        ),
    ],
)
def test_file_without_its_partner_is_named(tmp_path, removed, message):
    save_lits(tmp_path, range(3))
    for number in (1, 2):
        (tmp_path / f"{removed}-{number}.nii").unlink()
    with pytest.raises(InputError, match=message):
        find_cases(tmp_path)


def test_case_number_in_two_subfolders_is_refused_with_both_paths(tmp_path):
    save_case(tmp_path / "a", 7)
    save_case(tmp_path / "b", 7)
    with pytest.raises(InputError, match=r"segmentation-7\.nii: segmentation 7 is also .*-7\.nii; remove one"):
        find_cases(tmp_path)
    reasons = [finding.reason for finding in list_cases(tmp_path)[1]]
    assert [reason.split(" is also ")[0] for reason in reasons] == ["segmentation 7", "volume 7"]


def test_msd_cases_come_from_the_training_list_of_dataset_json(tmp_path):
    def item(name):
        return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}

    training = [item("liver_10"), item("._liver_2"), item("liver_2")]
    write_json(tmp_path / "dataset.json", {"training": training, "test": ["./imagesTs/liver_132.nii.gz"]})
    assert find_cases(tmp_path) == [
        Case(name, str(tmp_path / f"imagesTr/{name}.nii.gz"), str(tmp_path / f"labelsTr/{name}.nii.gz"))
        for name in ("liver_2", "liver_10")
    ]


def test_datalist_json_keeps_its_sections_and_its_paths_are_relative_to_it(tmp_path):
    datalist = {"training": [pair(0, "a")], "validation": [pair(1, "a")], "test": [pair(2, "a")]}
    cases = find_cases(write_json(tmp_path / "mine.json", datalist))
    assert [case.section for case in cases] == ["training", "validation", "test"]
    assert cases[1].image == str(tmp_path / "a" / "volume-1.nii")


def test_images_of_one_name_in_several_folders_are_named_by_their_paths(tmp_path):
    items = [{"image": f"{name}/ct.nii.gz", "label": f"{name}/liver.nii.gz"} for name in ("p1", "p2")]
    cases = find_cases(write_json(tmp_path / "mine.json", {"training": items}))
    assert [case.name for case in cases] == ["p1/ct.nii.gz", "p2/ct.nii.gz"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"mine\.json: cannot be read as JSON"),
        ("[]", r"mine\.json: must hold a JSON object"),
        ("{}", r"mine\.json: has no 'training' list"),
        ('{"training": "abc"}', r"mine\.json: has no 'training' list"),
        ('{"training": [{"image": "a.nii"}]}', r"mine\.json: training\[0\] must give one path each as 'image'"),
        ('{"training": ["a.nii"]}', r"mine\.json: training\[0\] must give one path each as 'image'"),
        ('{"training": [{"image": "._a.nii", "label": "._b.nii"}]}', r"mine\.json: lists no cases"),
        (
            '{"training": [{"image": "a.nii", "label": "b"}], "validation": [{"image": "./a.nii", "label": "b"}]}',
            r"validation\[0\] lists .*a\.nii a second time",
        ),
        (
            '{"training": [{"image": "d/1.nii.gz", "label": "b"}, {"image": "d/1.nrrd", "label": "c"}]}',
            r"d/1\.nrrd: its mask would have the same name as that of 1\.nii\.gz; rename one of them",
        ),
        (
            '{"training": [{"image": "a.nii", "label": "b.nii"}], "test": [{"image": "c.nii", "label": "d.nii"}]}',
            r"has labelled 'test' cases but no 'validation'",
        ),
    ],
)
def test_unusable_datalist_json_is_refused_with_the_place_and_reason(tmp_path, text, message):
    file = tmp_path / "mine.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        find_cases(file)


# ---- checking ----


def test_sound_case_is_ok_and_measured(tmp_path):
    report = check_case(save_case(tmp_path))
    assert (report.status, report.findings) == ("ok", ())
    assert report.slices == 48
    assert report.spacing_mm == SPACING_MM
    assert report.liver_ml == pytest.approx(0.9)  # 200 voxels of 4.5 mm³
    assert report.tumor_ml == pytest.approx(0.09)


def test_slices_are_counted_along_the_axis_closest_to_head_foot(tmp_path):
    affine = np.array([[0.0, 1.5, 0.1, 0], [0.1, 0, 1.5, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])
    label = make_label((20, 12, 10))
    label[4:8, 4:8, 4:6] = 1
    case = save_case(tmp_path, image=make_image((20, 12, 10)), label=label, affine=affine)
    report = check_case(case)
    assert report.slices == 20
    assert report.status == "dropped"
    assert only_reason(case, "dropped") == "20 slices, fewer than 48"


@pytest.mark.parametrize(("slices", "status"), [(47, "dropped"), (48, "ok")])
def test_scan_under_48_slices_is_dropped(tmp_path, slices, status):
    case = save_case(tmp_path, image=make_image()[..., :slices], label=make_label()[..., :slices])
    assert check_case(case).status == status


def test_scaled_integers_and_doubles_are_read_as_float32_hu(tmp_path):
    scaled = nib.Nifti1Image((make_image() + np.int16(24)) // np.int16(2), AFFINE)
    scaled.header.set_slope_inter(2, -24)
    files = [tmp_path / "scaled.nii.gz", save(tmp_path / "double.nii", make_image().astype(np.float64))]
    nib.save(scaled, files[0])
    for file in files:
        array = read_volume(str(file)).array
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, make_image())


def change_last_voxel(file):
    content = bytearray(gzip.compress(gzip.decompress(file.read_bytes()), compresslevel=0))  # stored as it is
    content[-9] ^= 1  # before the 8 bytes of checksum and length
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (".nii", Path.unlink, "does not exist"),
        (".nii", truncate, "cannot be read.*Expected .* bytes"),
        (".nii.gz", truncate, "cannot be read.*EOFError: Compressed file ended"),
        (".nii.gz", change_last_voxel, "cannot be read.*CRC check failed"),
        (
            ".nii.gz",
            lambda file: file.write_bytes(b"no gzip" * 100),
            "cannot be read.*ImageFileError: File .* is not a gzip file",
        ),
        (".nii", lambda file: file.write_bytes(b""), "cannot be read.*ImageFileError: Empty file"),
        (".nii", lambda file: file.write_text("<html>" * 200), "cannot be read.*ImageFileError"),
    ],
)
@pytest.mark.parametrize("kind", ["image", "label"])
def test_missing_or_broken_file_is_an_error_that_names_it(tmp_path, kind, suffix, damage, message):
    noise = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    case = save_case(tmp_path, image=noise, label=noise, suffix=suffix)
    file = getattr(case, kind)
    other = save(tmp_path / "sound.nii", make_image())
    damage(Path(file))
    case = Case("x", **{"image": str(other), "label": str(other), kind: file})
    (finding,) = check_case(case).findings
    assert (finding.severity, finding.file) == ("error", file)
    with pytest.raises(ValueError, match=message):
        raise ValueError(finding.reason)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_small_file_whose_header_promises_terabytes_takes_no_memory(tmp_path, suffix):
    path = tmp_path / f"volume-0{suffix}"
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), tmp_path / "sound.nii")
    content = bytearray((tmp_path / "sound.nii").read_bytes())
    struct.pack_into("<4h", content, 40, 3, 32000, 32000, 32000)
    path.write_bytes(gzip.compress(bytes(content)) if suffix == ".nii.gz" else bytes(content))
    tracemalloc.start()
    with pytest.raises(ValueError, match="Expected 65536000000352 bytes, the file has no more than"):
        check_size(nib.load(path))
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_both_files_of_a_case_are_reported_when_both_are_broken(tmp_path):
    report = check_case(Case("x", str(tmp_path / "a.nii"), str(tmp_path / "b.nii")))
    assert [str(finding) for finding in report.findings] == [
        "error: a.nii: does not exist; restore it or take it off the list",
        "error: b.nii: does not exist; restore it or take it off the list",
    ]
    assert report.slices is None
    assert np.isnan([report.liver_ml, report.tumor_ml, *report.spacing_mm]).all()


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def with_spacing(*spacing_mm):
    return np.diag([*spacing_mm, 1.0])


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (make_image()[..., 24], "has shape (12, 10); it must be one 3D volume"),
        (make_image().astype(np.complex64), "has voxels of type complex64; save it with one real number per voxel"),
        (np.zeros(SHAPE, RGB), f"has voxels of type {RGB}; save it with one real number per voxel"),
        (set_voxel(make_image().astype(np.float32), np.nan), "has voxels that are NaN or infinite; replace them"),
        (set_voxel(make_image().astype(np.float32), -np.inf), "has voxels that are NaN or infinite; replace them"),
        (np.full(SHAPE, -1000, np.int16), "every voxel is -1000; it holds no scan: export it again"),
        (
            make_image() + np.int16(1024),
            "no voxel is under -200 HU (they are 24 to 1084); it looks like HU + 1024, windowed, or not CT: "
            "convert it to HU",
        ),
        (
            np.where(make_image() == 60, np.int16(700), np.int16(-2000)),
            "hardly any voxel is soft tissue (-100 to 200 HU); convert it to HU",
        ),
        (
            np.where(make_image() == 60, np.int16(1084), np.int16(-2000)),  # 8 * 6 * 44 of 12 * 10 * 48
            "37% of the voxels are over 800 HU; it looks like HU + 1024: convert it to HU",
        ),
        (
            make_image().astype(np.uint16),
            "no voxel is under -200 HU (they are 60 to 64536); it looks like HU below 0 that were saved as unsigned "
            "16-bit integers: subtract 65536 from those over 32767",
        ),
    ],
)
def test_implausible_image_is_an_error(tmp_path, image, reason):
    assert only_reason(save_case(tmp_path, image=image), "error") == reason


def test_padding_far_below_air_is_fine(tmp_path):
    assert check_case(save_case(tmp_path, image=set_voxel(make_image(), -3024))).findings == ()


@pytest.mark.parametrize(
    ("spacing_mm", "reason"),
    [
        ((0.1, 1.5, 2), "its spacing in plane is 0.1 mm, not 0.2 to 10 mm; repair its header"),
        ((1.5, 11, 2), "its spacing in plane is 11 mm, not 0.2 to 10 mm; repair its header"),
        ((1.5, 1.5, 16), "its spacing between slices is 16 mm, not 0.2 to 15 mm; repair its header"),
        ((1.5, 1.5, 0.1), "its spacing between slices is 0.1 mm, not 0.2 to 15 mm; repair its header"),
    ],
)
def test_insane_spacing_is_an_error(tmp_path, spacing_mm, reason):
    assert only_reason(save_case(tmp_path, affine=with_spacing(*spacing_mm)), "error") == reason


def test_spacing_of_6_mm_is_sane_between_slices_only(tmp_path):
    assert check_case(save_case(tmp_path, affine=with_spacing(1.5, 1.5, 6))).status == "ok"


@pytest.mark.parametrize("row", [(0, 0, 0, 0), (np.nan, 0, 0, 0)])
def test_singular_affine_is_an_error(tmp_path, row):
    case = save_case(tmp_path)
    content = bytearray(Path(case.image).read_bytes())
    content[280:296] = np.array(row, "<f4").tobytes()  # srow_x in a NIfTI-1 header
    Path(case.image).write_bytes(content)
    assert only_reason(case, "error") == "has a singular affine, so no spacing or orientation; repair its header"


def test_image_and_label_of_different_shapes_are_an_error(tmp_path):
    reason = only_reason(save_case(tmp_path, label=make_label()[..., 1:]), "error")
    assert reason == "has shape (12, 10, 47) along its image's axes, not (12, 10, 48); they must share one grid"


def move(affine, x_mm):
    affine = affine.copy()
    affine[0, 3] += x_mm
    return affine


def test_shifted_label_affine_is_an_error_that_says_by_how_much(tmp_path):
    case = save_case(tmp_path, label_affine=move(AFFINE, 0.25))
    assert only_reason(case, "error").startswith("its affine differs from its image's by up to 0.25 mm; resample it")


HALF = np.sqrt(0.5)
OBLIQUE = np.array([[HALF, -HALF, 0, 7], [HALF, HALF, 0, -5], [0, 0, 1, 3], [0, 0, 0, 1]]) @ AFFINE  # by 45 degrees


@pytest.mark.parametrize(
    ("store", "to_image"),  # how the label is stored, and the voxel of the image that a stored voxel is
    [
        (lambda label: label[::-1, ::-1], [[-1, 0, 0, 11], [0, -1, 0, 9], [0, 0, 1, 0], [0, 0, 0, 1]]),
        (lambda label: label.transpose(2, 0, 1), [[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]),
        (lambda label: label.transpose(1, 0, 2)[:, ::-1], [[0, -1, 0, 11], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ],
    ids=["reversed", "swapped", "both"],
)
@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE], ids=["straight", "oblique"])
def test_label_stored_with_other_axes_than_its_image_is_turned_to_match_with_a_warning(
    tmp_path, affine, store, to_image
):
    label = make_label()
    image = np.where(label > 0, 60, -1000).astype(np.int16)  # so that any other place has a median of -1000 HU
    case = save_case(tmp_path, image=image, label=store(label), affine=affine, label_affine=affine @ to_image)
    reason = "is stored with other axes than its image; the same grid, so it is turned to match"
    report = check_case(case)
    assert report.findings == (("warning", case.label, reason),)
    assert (report.liver_ml, report.tumor_ml) == pytest.approx((0.9, 0.09))


def test_rounding_does_not_turn_the_label_of_an_image_at_45_degrees(tmp_path):
    tilt = np.array([[1, 1e-5, 0, 0], [-1e-5, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    case = save_case(tmp_path, affine=tilt @ OBLIQUE, label_affine=tilt.T @ OBLIQUE)
    assert check_case(case).findings == ()


def test_flip_of_the_labels_header_alone_puts_it_elsewhere_which_is_an_error(tmp_path):
    case = save_case(tmp_path, label_affine=with_spacing(-1.5, 1.5, 2))  # from -16.5 to 0 mm, the image from 0 to 16.5
    assert only_reason(case, "error").startswith("its affine differs from its image's by up to 16.5 mm")
    assert list_reasons(case, "warning") == []


def test_swap_of_axes_in_the_labels_header_alone_is_an_error(tmp_path):
    case = save_case(tmp_path, label_affine=AFFINE[:, [1, 0, 2, 3]])
    reason = "has shape (10, 12, 48) along its image's axes, not (12, 10, 48); they must share one grid"
    assert only_reason(case, "error") == reason


def test_affines_that_differ_by_rounding_are_one_grid(tmp_path):
    assert check_case(save_case(tmp_path, label_affine=move(AFFINE, 1e-3))).findings == ()


@pytest.mark.parametrize(
    ("label", "values"),
    [
        (set_voxel(make_label(), 255), "255"),
        (set_voxel(make_label().astype(np.int16), -1), "-1"),
        (make_label() * np.float32(0.5), "0.5"),
        (np.arange(12 * 10 * 48, dtype=np.int16).reshape(SHAPE), "3, 4, 5, 6, 7, ..."),
    ],
)
def test_unknown_label_values_are_an_error_that_lists_them(tmp_path, label, values):
    reason = only_reason(save_case(tmp_path, label=label), "error")
    assert reason == f"has label values other than 0, 1 and 2: {values}; map them to these"


def test_image_given_as_its_own_label_reports_image_and_label_apart(tmp_path):
    case = save_case(tmp_path, image=make_image() + np.int16(1024), label=set_voxel(make_label(), 3))
    assert [Path(finding.file).name for finding in check_case(case).findings] == ["volume-0.nii", "segmentation-0.nii"]


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (np.zeros(SHAPE, np.uint8), "is empty: no liver and no tumour"),
        (
            set_voxel(np.zeros(SHAPE, np.uint8), 1) + make_label() * 0,
            "the liver fills 0.02% of the volume",
        ),  # 1 of 5760
        (
            np.roll(make_label(), 4, axis=0),  # 3:7 becomes 7:11, the block ends at 10
            "25% of the label is air (under -200 HU): it may be shifted; look at it",
        ),
    ],
)
def test_doubtful_label_is_a_warning(tmp_path, label, reason):
    image = make_image()
    image[0, 0, 0] = 60  # under the single voxel
    case = save_case(tmp_path, image=image, label=label)
    assert only_reason(case, "warning") == reason
    assert check_case(case).status == "ok"


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (
            1 - np.minimum(make_label(), 1),  # 200 of 5760 are liver
            "the liver fills 96.53% of the volume: the label may be inverted; draw it again",
        ),
        (
            np.roll(make_label(), -3, axis=0) * (make_image() != 60),
            "the median under the label is -1000 HU, which is not liver: the label may be shifted, flipped or another "
            "scan's; put it right",
        ),
    ],
)
def test_label_that_cannot_be_its_images_is_an_error(tmp_path, label, reason):
    case = save_case(tmp_path, image=make_image(), label=label)
    assert reason in list_reasons(case, "error")


def test_median_of_a_few_voxels_is_a_warning_alone(tmp_path):
    label = np.zeros_like(make_label())
    label[0, 0, 0] = 1
    case = save_case(tmp_path, image=make_image(), label=label)
    assert any("HU, which is not liver" in reason for reason in list_reasons(case, "warning"))
    assert not list_reasons(case, "error")


def make_reports(sections, twins):
    """Reports of images of which those at the indices ``twins`` have the same voxels."""
    return [
        CaseReport(Case(f"volume-{n}", f"{n}.nii", "", section), (), fingerprint="same" if n in twins else str(n))
        for n, section in enumerate(sections)
    ]


@pytest.mark.parametrize(
    ("sections", "severity", "where"),
    [
        ((None, None, None), "error", ""),  # the split could part them
        (("training", "training", "test"), "error", " of training"),
        (("training", "validation", "training"), "warning", " of training"),
    ],
)
def test_the_same_scan_twice_is_an_error_unless_both_are_in_one_section(sections, severity, where):
    reports = find_repeated(make_reports(sections, twins=(0, 2)))
    assert [report.findings for report in reports[:2]] == [(), ()]
    (finding,) = reports[2].findings
    assert finding == (severity, "2.nii", f"is the same scan as 0.nii{where}; remove one of the two")


def test_images_of_the_same_voxels_have_one_fingerprint_whatever_their_header(tmp_path):
    cases = [save_case(tmp_path / name, image=make_image()) for name in "ab"]
    cases.append(save_case(tmp_path / "c", image=make_image(), affine=move(AFFINE, 7), suffix=".nii.gz"))
    cases.append(save_case(tmp_path / "d", image=make_image().astype(np.float32)))
    cases.append(save_case(tmp_path / "e", image=set_voxel(make_image(), -999)))
    fingerprints = [check_case(case).fingerprint for case in cases]
    assert len(set(fingerprints[:4])) == 1 and fingerprints[4] != fingerprints[0]


def test_cases_that_cannot_be_read_are_not_taken_for_one_another():
    reports = [CaseReport(Case(name, name, ""), ()) for name in "ab"]
    assert find_repeated(reports) == reports


@pytest.mark.parametrize("number", [28, 47])
def test_3d_ircadb_scan_with_its_spacing_reset_is_a_warning(tmp_path, number):
    affine = move(np.eye(4), 5)
    assert "3D-IRCADb scan whose spacing was reset to 1 mm" in only_reason(
        save_case(tmp_path, number, affine=affine), "warning"
    )


@pytest.mark.parametrize(("number", "spacing_mm"), [(27, (1, 1, 1)), (48, (1, 1, 1)), (28, (1, 1, 1.25))])
def test_other_scans_are_not_taken_for_3d_ircadb(tmp_path, number, spacing_mm):
    assert check_case(save_case(tmp_path, number, affine=move(with_spacing(*spacing_mm), 5))).findings == ()


def test_3d_ircadb_scan_is_known_by_its_msd_name_too(tmp_path):
    case = save_case(tmp_path, affine=move(np.eye(4), 5))
    assert "3D-IRCADb" in only_reason(Case("liver_30", case.image, case.label), "warning")


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1, -1, 1, 1])], ids=["NIfTI", "as ITK writes it"])
def test_identity_affine_is_a_warning(tmp_path, affine):
    reason = only_reason(save_case(tmp_path, affine=affine), "warning")
    assert reason == "identity affine: its orientation and millimetres are likely not true"


def test_label_of_volume_54_is_a_warning(tmp_path):
    (finding,) = check_case(save_case(tmp_path, 54)).findings
    assert str(finding).startswith(
        "warning: segmentation-54.nii: LiTS's label of this case has been reported as shifted"
    )


def save_with_codes(case, sform_code, qform_code, qform=AFFINE):
    image = nib.Nifti1Image(make_image(), AFFINE)
    image.set_qform(qform, qform_code)
    image.set_sform(AFFINE if sform_code else None, sform_code)
    nib.save(image, case.image)


def test_sform_and_qform_that_disagree_are_a_warning(tmp_path):
    case = save_case(tmp_path)
    save_with_codes(case, 1, 1, move(AFFINE, 3))
    assert only_reason(case, "warning") == "its sform and qform disagree by up to 3 mm; the sform is used"


def test_qform_that_is_not_set_does_not_disagree(tmp_path):
    case = save_case(tmp_path)
    save_with_codes(case, 1, 0, move(AFFINE, 3))
    assert check_case(case).findings == ()


def test_header_without_orientation_is_a_warning(tmp_path):
    case = save_case(tmp_path)
    for file, array in ((case.image, make_image()), (case.label, make_label())):
        image = nib.Nifti1Image(array, None)
        image.header.set_zooms(SPACING_MM)
        nib.save(image, file)
    reasons = list_reasons(case, "warning")
    assert reasons == ["its header says no orientation (neither sform nor qform is set)"] * 2


def test_other_formats_of_a_datalist_are_read_by_monai(tmp_path):
    files = []
    for name, array in (("image", make_image()), ("label", make_label())):
        image = itk.image_from_array(np.ascontiguousarray(array.T))
        image.SetSpacing(SPACING_MM)
        files.append(str(tmp_path / f"{name}.mha"))
        itk.imwrite(image, files[-1])
    report = check_case(Case("x", *files))
    assert report.findings == ()
    assert report.slices == 48
    assert report.spacing_mm == pytest.approx(SPACING_MM)
    assert report.liver_ml == pytest.approx(0.9)


@pytest.mark.parametrize(
    "voxels, expected",
    [
        (np.array([0, 0, 1, 2], np.uint8), True),
        (np.array([0.0, 117.0]), True),
        (np.arange(200), False),  # an image of 8 bits has more numbers than there are labels
        (np.array([0, 0.5, 1]), False),
        (np.array([0, 0]), False),
        (np.array([-1000, 0, 40]), False),
        (np.array([0, 1400]), False),
    ],
)
def test_a_label_map_is_few_small_whole_numbers(voxels, expected):
    assert is_label_map(voxels) == expected
