"""The drawing in docs/paper.md is that of the network as it is."""

import inspect
from itertools import combinations
from xml.etree import ElementTree

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from scripts.architecture import describe, draw, main, measure_shapes
from scripts.networks import MPUNet
from tests import ROOT

COMMITTED = ROOT / "docs/architecture.svg"
SVG = "{http://www.w3.org/2000/svg}"


def texts():
    return [
        (element.text, float(element.get("x")), float(element.get("y")), element.attrib)
        for element in ElementTree.parse(COMMITTED).iter(f"{SVG}text")
    ]


def boxes():
    """(left, right, top, bottom) of each text, in DejaVu: wider than the fonts that the drawing asks for first."""
    for words, x, y, style in texts():
        family = "DejaVu Sans Mono" if style["font-family"] == "monospace" else "DejaVu Sans"
        font = FontProperties(family=family, weight=style.get("font-weight", "normal"))
        size = float(style["font-size"])
        width = TextPath((0, 0), words, size=size, prop=font).get_extents().width
        left = {"start": x, "middle": x - width / 2, "end": x - width}[style["text-anchor"]]
        yield words, (left, left + width, y - 0.75 * size, y + 0.2 * size)


def frames():
    """(left, right, top, bottom) of each block, the smallest first; the last is the whole picture."""
    rectangles = [
        tuple(float(element.get(name, 0)) for name in ("x", "y", "width", "height"))
        for element in ElementTree.parse(COMMITTED).iter(f"{SVG}rect")
    ]
    return sorted(
        ((x, x + width, y, y + height) for x, y, width, height in rectangles),
        key=lambda frame: (frame[1] - frame[0]) * (frame[3] - frame[2]),
    )


def test_the_committed_drawing_is_what_the_code_draws(tmp_path):
    main(str(tmp_path / "architecture.svg"))
    message = "the network has changed: python -m scripts.architecture --path docs/architecture.svg"
    assert (tmp_path / "architecture.svg").read_bytes() == COMMITTED.read_bytes(), message


def test_it_has_every_channel_and_size_of_the_network():
    shapes = measure_shapes()
    assert shapes.parameters == 21_507_255
    assert [shape[0] for shape in shapes.encoders] == [16, 32, 64, 128, 256]
    assert [shape[0] for shape in shapes.decoders] == [256, 128, 64, 32]
    words = [text for text, *_ in texts()]
    for shape in (shapes.image, *shapes.encoders, *shapes.decoders, shapes.context):
        assert any(describe(shape) in text for text in words), shape
    assert "MPU-Net as configured: 21,507,255 parameters" in words


def test_every_option_is_in_it_and_off_by_default():
    code = " ".join(text for text, _, _, style in texts() if style["font-family"] == "monospace")
    options = code.replace(",", "").split()
    parameters = inspect.signature(MPUNet).parameters
    released = {"in_channels", "out_channels", "channels", "dropout", "norm", "elu_alpha", "deep_supervision"}
    always = {"position_attention", "attention_gates", "max_keys"}
    unseen = {"checkpointing"}  # changes how it is trained, not what it is
    assert set(options) == set(parameters) - released - always - unseen
    assert all(
        not parameters[name].default for name in ("multi_scale", "cross_attention", "fusion_weights", "patch_size")
    )
    assert not parameters["attention_levels"].default
    assert not parameters["pyramid_pooling"].default


def test_no_text_touches_another_or_the_frame_it_is_in():
    found = list(boxes())
    for words, (left, right, top, bottom) in found:
        x, y = (left + right) / 2, (top + bottom) / 2
        frame = next(frame for frame in frames() if frame[0] < x < frame[1] and frame[2] < y < frame[3])
        assert left >= frame[0] + 2, words
        assert right <= frame[1] - 2, words
        assert top >= frame[2], words
        assert bottom <= frame[3], words
    for (one, a), (other, b) in combinations(found, 2):
        apart = a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
        assert apart, f"{one!r} on {other!r}"


@pytest.mark.parametrize("tag", ["title", "desc"])
def test_it_says_in_words_what_it_shows(tag):
    assert len(ElementTree.parse(COMMITTED).find(f"{SVG}{tag}").text) > 20


def test_it_is_small_and_needs_nothing_else():
    assert COMMITTED.stat().st_size < 40_000
    assert "href" not in COMMITTED.read_text(encoding="utf-8")
    assert ElementTree.tostring(draw().root).count(b"http") == 1  # its namespace
