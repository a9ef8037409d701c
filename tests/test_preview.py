"""A preview shows the patient's right at the left, whatever the orientation of the file, and draws any volume."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from scipy import ndimage

from scripts.preview import draw_preview, middle_of

CLASS_NAMES = ("background", "liver", "tumor")
SIZE_MM = {"R": 160.0, "A": 120.0, "S": 96.0}  # of the body, which fills the volume
SPACING_MM = {"R": 4.0, "A": 5.0, "S": 3.0}
POSITIVE = {"R": "R", "L": "R", "A": "A", "P": "A", "S": "S", "I": "S"}
# outlines of the first, second and third foreground class
RED, YELLOW, BLUE = (255, 64, 64), (255, 208, 0), (64, 192, 255)


def make_scan(codes, angle_deg=0.0):
    """A grey body about the origin with a bright block at the patient's right, front and top, which is the mask.

    Its axes point to the letters ``codes``: "LPS" is a volume whose first index grows to the patient's left. The
    grid is turned by ``angle_deg`` about the patient's long axis; the body is turned with it.

    Returns:
        image in HU, mask, affine.
    """
    columns = []
    for letter in codes:
        axis = POSITIVE[letter]
        direction = np.array([axis == "R", axis == "A", axis == "S"], dtype=float)
        columns.append(direction * SPACING_MM[axis] * (1 if letter == axis else -1))
    matrix = np.stack(columns, axis=1)
    shape = tuple(round(SIZE_MM[POSITIVE[letter]] / SPACING_MM[POSITIVE[letter]]) for letter in codes)
    first_voxel_mm = -matrix @ (np.array(shape) - 1) / 2
    positions_mm = np.moveaxis(np.indices(shape), 0, -1) @ matrix.T + first_voxel_mm  # (X, Y, Z, 3) to R, A, S
    fractions = positions_mm / [SIZE_MM["R"], SIZE_MM["A"], SIZE_MM["S"]]  # from -½ to ½
    block = ((fractions > 0.15) & (fractions < 0.4)).all(axis=-1)

    angle = np.deg2rad(angle_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ matrix, turn @ first_voxel_mm
    return np.where(block, 400, 0).astype(np.int16), block.astype(np.uint8), affine


def read_png(path):
    """Return the picture ``(rows, columns, 3)`` uint8."""
    return (imread(path)[..., :3] * 255).round().astype(np.uint8)


def panels_of(picture):
    """Return the three pictures of a preview whose body fills the volume: what is not black and not a letter."""
    regions, _ = ndimage.label(picture.max(axis=-1) > 60)
    boxes = [box for box in ndimage.find_objects(regions) if min(axis.stop - axis.start for axis in box) > 60]
    assert len(boxes) == 3
    axial, *right = sorted(boxes, key=lambda box: box[1].start)
    coronal, sagittal = sorted(right, key=lambda box: box[0].start)
    return {"axial": picture[axial], "coronal": picture[coronal], "sagittal": picture[sagittal]}


def count_color(picture, color):
    """How many pixels are nearly of a colour."""
    return int((np.abs(picture.astype(int) - color).max(axis=-1) < 24).sum())


def position_of_bright(picture):
    """Centre of what is white, as fractions of the height (from the top) and of the width (from the left)."""
    rows, columns = np.nonzero(picture.min(axis=-1) > 200)
    return (rows.mean() + 0.5) / picture.shape[0], (columns.mean() + 0.5) / picture.shape[1]


def preview_of(image, mask, affine, path, class_names=CLASS_NAMES):
    draw_preview(image, mask, affine, class_names, path, "volume-0")
    return read_png(path)


@pytest.mark.parametrize(
    ("codes", "angle_deg"),
    [("RAS", 0), ("LPS", 0), ("LAS", 0), ("RAI", 0), ("SPR", 0), ("AIL", 0), ("LPS", 20)],
    ids=lambda value: str(value),
)
def test_the_patients_right_front_and_top_are_where_a_radiologist_expects_them(tmp_path, codes, angle_deg):
    panels = panels_of(preview_of(*make_scan(codes, angle_deg), tmp_path / "preview.png"))
    # The block spans 0.15 to 0.4 of the way from the middle: its centre is 0.275 from it, at 0.225 of the picture.
    # Right is at the left of axial and coronal, front at the top of axial and left of sagittal, top at the top.
    for plane, picture in panels.items():
        assert position_of_bright(picture) == pytest.approx((0.225, 0.225), abs=0.03), plane


@pytest.fixture
def figures(monkeypatch):
    """Those that are saved."""
    kept, save = [], Figure.savefig

    def save_and_keep(figure, *args, **kwargs):
        kept.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", save_and_keep)
    return kept


def test_the_letters_at_the_borders_name_the_sides_of_the_patient(tmp_path, figures):
    preview_of(*make_scan("LPS"), tmp_path / "preview.png")
    sides = {(0, 0.5): "left", (1, 0.5): "right", (0.5, 1): "top", (0.5, 0): "bottom"}
    letters = {
        axis.get_label(): {sides[text.xy]: text.get_text() for text in axis.texts if isinstance(text, Annotation)}
        for axis in figures[0].axes
    }
    assert letters == {
        "axial": {"left": "R", "right": "L", "top": "A", "bottom": "P"},
        "coronal": {"left": "R", "right": "L", "top": "S", "bottom": "I"},
        "sagittal": {"left": "A", "right": "P", "top": "S", "bottom": "I"},
    }


@pytest.mark.parametrize("air", [0, 30])
def test_the_axial_slice_is_numbered_as_in_the_whole_image_and_has_a_bar_of_50_mm(tmp_path, figures, air):
    image = np.pad(np.full((20, 20, 10), 40, np.float32), [(0, 0), (0, 0), (air, air)], constant_values=-1000)
    mask = np.zeros(image.shape, np.uint8)
    mask[5:15, 5:15, air + 6] = 1
    draw_preview(image, mask, np.diag([5.0, 5, 5, 1]), ("background", "liver"), tmp_path / "preview.png")
    (axial,) = (axis for axis in figures[0].axes if axis.get_label() == "axial")
    said = [text.get_text().strip() for text in axial.texts if not isinstance(text, Annotation)]
    assert said == [f"slice {air + 7} of {10 + 2 * air} from the feet\nlevel 40, width 400 HU"]
    (bar,) = axial.findobj(AnchoredSizeBar)
    (line,) = bar.size_bar.findobj(Rectangle)
    pixels_per_mm = axial.transData.get_matrix()[0, 0]
    assert line.get_window_extent().width == pytest.approx(50 * pixels_per_mm, abs=1)


def test_a_millimetre_is_as_long_across_as_down(tmp_path):
    panels = panels_of(preview_of(*make_scan("SPR"), tmp_path / "preview.png"))
    ratios = {plane: picture.shape[1] / picture.shape[0] for plane, picture in panels.items()}
    assert ratios == pytest.approx({"axial": 160 / 120, "coronal": 160 / 96, "sagittal": 120 / 96}, rel=0.02)


def test_every_class_that_is_present_is_outlined_in_its_colour(tmp_path):
    image, mask, affine = make_scan("RAS")
    liver = ndimage.binary_dilation(mask, iterations=3)
    without, with_tumor = liver.astype(np.uint8), liver + mask
    pictures = [panels_of(preview_of(image, m, affine, tmp_path / "preview.png")) for m in (without, with_tumor)]
    for plane in ("axial", "coronal", "sagittal"):
        assert count_color(pictures[0][plane], RED) > 50
        assert count_color(pictures[0][plane], YELLOW) == 0
        assert count_color(pictures[1][plane], RED) > 50
        assert count_color(pictures[1][plane], YELLOW) > 50


def test_an_outline_runs_around_its_mask(tmp_path):
    image, mask, affine = make_scan("LPS")
    picture = panels_of(preview_of(image, mask, affine, tmp_path / "preview.png"))["axial"]
    rows, columns = np.nonzero(np.abs(picture.astype(int) - RED).max(axis=-1) < 24)
    # the block reaches from 0.1 to 0.35 of the picture, its nearest voxel borders within half a voxel of that
    assert (rows.min() / picture.shape[0], rows.max() / picture.shape[0]) == pytest.approx((0.1, 0.35), abs=0.03)
    assert (columns.min() / picture.shape[1], columns.max() / picture.shape[1]) == pytest.approx((0.1, 0.35), abs=0.03)


def test_an_empty_mask_is_drawn_as_the_middle_of_the_volume_without_outlines(tmp_path):
    _, mask, affine = make_scan("RAS")
    image = np.zeros(mask.shape)  # 40 × 24 × 32
    image[18:22, 10:14, 14:18] = 400
    panels = panels_of(preview_of(image, np.zeros_like(mask), affine, tmp_path / "preview.png"))
    for picture in panels.values():
        assert position_of_bright(picture) == pytest.approx((0.5, 0.5), abs=0.02)
        assert max(count_color(picture, color) for color in (RED, YELLOW, BLUE)) == 0


@pytest.mark.parametrize("axis", range(3))
def test_a_volume_of_one_slice_is_drawn(tmp_path, axis):
    image, mask, affine = make_scan("RAS")
    index = [int(np.argwhere(mask)[0, axis])]
    image, mask = image.take(index, axis), mask.take(index, axis)
    picture = preview_of(image, mask, affine, tmp_path / "preview.png")
    without = preview_of(image, np.zeros_like(mask), affine, tmp_path / "without.png")
    assert count_color(picture, RED) > count_color(without, RED) + 50  # the legend is red in both


def test_a_volume_of_nothing_but_air_is_drawn(tmp_path):
    image, mask, affine = make_scan("RAS")
    air = np.full_like(image, -1000)
    picture = preview_of(air, mask, affine, tmp_path / "preview.png")
    without = preview_of(air, np.zeros_like(mask), affine, tmp_path / "without.png")
    assert count_color(picture, RED) > count_color(without, RED) + 50  # the legend is red in both


def test_air_around_the_body_is_cut_off(tmp_path):
    image, mask, affine = make_scan("RAS")
    padding = [(40, 40), (0, 60), (80, 0)]
    picture = preview_of(
        np.pad(image, padding, constant_values=-1000), np.pad(mask, padding), affine, tmp_path / "preview.png"
    )
    whole = preview_of(image, mask, affine, tmp_path / "whole.png")
    # 5 voxels of air stay on every padded side: of 40 voxels of body, 50 are shown, so it is drawn 4/5 as wide
    widths = [panels_of(each)["axial"].shape[1] for each in (picture, whole)]
    assert widths[0] / widths[1] == pytest.approx(4 / 5, rel=0.03)


def test_the_types_of_the_arrays_do_not_change_the_picture(tmp_path):
    image, mask, affine = make_scan("RAS")
    first = preview_of(image, mask, affine, tmp_path / "first.png")
    second = preview_of(image.astype(np.float64), mask.astype(bool), affine.tolist(), tmp_path / "second.png")
    assert np.array_equal(first, second)


def test_the_planes_go_through_the_last_class_present(tmp_path):
    image, block, affine = make_scan("RAS")
    liver = block[::-1, ::-1, ::-1]  # as large as the tumour, which is the bright block, and in no plane with it
    pictures = [panels_of(preview_of(image, m, affine, tmp_path / "preview.png")) for m in (liver, liver + 2 * block)]
    for plane in ("axial", "coronal", "sagittal"):
        assert (pictures[0][plane] > 200).all(axis=-1).sum() == 0
        assert position_of_bright(pictures[1][plane]) == pytest.approx((0.225, 0.225), abs=0.03)


def test_the_middle_of_a_mask_is_where_the_slices_show_most_of_it():
    mask = np.zeros((10, 10, 10), bool)
    mask[2:5, 3, 4] = True
    mask[3, 3, 5:8] = True
    # voxels per slice: along x 1, 4, 1 from 2 on; along y all at 3; along z 3, 1, 1, 1 from 4 on
    assert middle_of(mask) == (3, 3, 4)


def test_the_middle_of_an_empty_mask_is_that_of_the_volume():
    assert middle_of(np.zeros((9, 6, 1), bool)) == (4, 3, 0)
