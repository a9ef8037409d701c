"""The drawing in docs/paper.md is that of the network as it is."""

import inspect
from itertools import combinations
from xml.etree import ElementTree

import pytest

from scripts.architecture import HEIGHT, WIDTH, describe, draw, main, measure_shapes
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
    """Estimated (left, right, top, bottom) of each text: letters of half an em, of 0.6 if monospaced."""
    for words, x, y, style in texts():
        size = float(style["font-size"])
        width = len(words) * size * (0.6 if style["font-family"] == "monospace" else 0.5)
        left = {"start": x, "middle": x - width / 2, "end": x - width}[style["text-anchor"]]
        yield words, (left, left + width, y - 0.75 * size, y + 0.2 * size)


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
    assert set(options) == set(parameters) - released - always
    assert all(
        not parameters[name].default for name in ("multi_scale", "cross_attention", "fusion_weights", "patch_size")
    )
    assert not parameters["attention_levels"].default
    assert not parameters["pyramid_pooling"].default


def test_no_text_leaves_the_picture_or_touches_another():
    found = list(boxes())
    for words, (left, right, top, bottom) in found:
        assert left >= 0, words
        assert right <= WIDTH, words
        assert top >= 0, words
        assert bottom <= HEIGHT, words
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
