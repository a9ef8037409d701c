"""How is the network drawn, true to its modules? Writes the SVG of ``docs/paper.md``.

    python -m scripts.architecture --path docs/architecture.svg

Channels, sizes and the number of parameters come from a network that is built and run (without memory) to draw it.
"""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch
from monai.bundle import ConfigParser
from torch import nn

from scripts.commands import run_command
from scripts.files import written_whole
from scripts.networks import MPUNet

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 1082, 832
FONT_PX, SMALL_PX, LINE_PX = 13, 12, 17
ROWS = (130, 240, 350, 460, 570)  # top of the encoder's levels 1 to 5
BLOCK = 62  # height of a block
ENCODER_X, OPTION_X, DECODER_X, HEAD_X, FUSION_X = 22, 314, 536, 814, 980
BLOCK_WIDTH, OPTION_WIDTH, GATE_WIDTH, HEAD_WIDTH, FUSION_WIDTH = 216, 190, 44, 134, 80
OPTIONS_WIDTH = FUSION_X + FUSION_WIDTH - HEAD_X  # below the output maps
FILLS = {"convolution": "#dce9f5", "attention": "#fde3b8", "output": "#dff0dc", "option": "#ffffff"}
STROKES = {"convolution": "#1b5e9b", "attention": "#b36200", "output": "#2a7a3f", "option": "#555555"}


@dataclass(frozen=True)
class Shapes:
    """What comes out of the network's modules for a training crop: (channels, height, width, depth) of each."""

    image: tuple[int, ...]
    encoders: list[tuple[int, ...]]
    downs: list[tuple[int, ...]]
    context: tuple[int, ...]
    decoders: list[tuple[int, ...]]
    heads: list[tuple[int, ...]]
    parameters: int


def measure_shapes() -> Shapes:
    """Run the network of ``configs/train.json``'s crop on tensors without memory, and note every shape."""
    config = ConfigParser(ConfigParser.load_config_file(ROOT / "configs/train.json"))
    roi_size = config.get_parsed_content("roi_size")
    with torch.device("meta"):
        network = MPUNet().eval()
        image = torch.empty(1, 1, *roi_size)
    noted: dict[nn.Module, tuple[int, ...]] = {}
    for module in (*network.encoders, *network.downs, network.context, *network.decoders, *network.heads):
        module.register_forward_hook(lambda module, inputs, output: noted.update({module: tuple(output.shape[1:])}))
    network(image)
    return Shapes(
        image=tuple(image.shape[1:]),
        encoders=[noted[module] for module in network.encoders],
        downs=[noted[module] for module in network.downs],
        context=noted[network.context],
        decoders=[noted[module] for module in network.decoders],
        heads=[noted[module] for module in network.heads],
        parameters=sum(parameter.numel() for parameter in network.parameters()),
    )


def describe(shape: tuple[int, ...]) -> str:
    """Return "16 × 128 × 128 × 96": channels and size."""
    return " × ".join(map(str, shape))


class Drawing:
    """An SVG of boxes, lines and texts."""

    def __init__(self, title: str, description: str):
        self.root = ElementTree.Element(
            "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img"
        )
        ElementTree.SubElement(self.root, "title").text = title
        ElementTree.SubElement(self.root, "desc").text = description
        marker = ElementTree.SubElement(
            ElementTree.SubElement(self.root, "defs"), "marker", id="tip", viewBox="0 0 10 10", refX="9", refY="5",
            markerWidth="7", markerHeight="7", orient="auto-start-reverse",
        )  # fmt: skip
        ElementTree.SubElement(marker, "path", d="M0 0L10 5L0 10z", fill="#333333")
        ElementTree.SubElement(self.root, "rect", width=str(WIDTH), height=str(HEIGHT), fill="#ffffff")

    def text(self, x: float, y: float, words: str, anchor: str = "middle", bold: bool = False) -> None:
        """Write a line; one that begins with ` is code: smaller, in a monospaced font."""
        code = words.startswith("`")
        size, family = (SMALL_PX, "monospace") if code else (FONT_PX, "Helvetica, Arial, sans-serif")
        style = {"font-size": str(size), "font-family": family, "text-anchor": anchor, "fill": "#111111"}
        if bold and not code:
            style["font-weight"] = "bold"
        ElementTree.SubElement(self.root, "text", x=f"{x:g}", y=f"{y:g}", **style).text = words.strip("`")

    def box(self, x: float, y: float, width: float, height: float, kind: str, lines: list[str]) -> None:
        """Draw a block with its lines in the middle, the first bold; options are dashed."""
        frame = {"fill": FILLS[kind], "stroke": STROKES[kind], "stroke-width": "1.5", "rx": "5"}
        if kind == "option":
            frame["stroke-dasharray"] = "5 4"
        ElementTree.SubElement(
            self.root, "rect", x=f"{x:g}", y=f"{y:g}", width=f"{width:g}", height=f"{height:g}", **frame
        )
        first = y + height / 2 - LINE_PX * (len(lines) - 1) / 2 + 4.5
        for index, line in enumerate(lines):
            self.text(x + width / 2, first + LINE_PX * index, line, bold=index == 0)

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        """Draw a line through points, with a tip at its end."""
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
        style = {"fill": "none", "stroke": "#333333", "stroke-width": "1.4", "marker-end": "url(#tip)"}
        if dashed:
            style["stroke-dasharray"] = "5 4"
        ElementTree.SubElement(self.root, "path", d=path, **style)

    def write(self, path: Path) -> None:
        """Write the file."""
        ElementTree.indent(self.root)
        with written_whole(path) as temporary:
            temporary.write_bytes(ElementTree.tostring(self.root, encoding="utf-8") + b"\n")


def draw_encoder(drawing: Drawing, shapes: Shapes) -> None:
    """Five levels at the left, downwards."""
    center = ENCODER_X + BLOCK_WIDTH / 2
    drawing.text(center, ROWS[0] - 38, f"CT, {describe(shapes.image)}", bold=True)
    drawing.arrow((center, ROWS[0] - 32), (center, ROWS[0] - 1))
    for level, (top, shape) in enumerate(zip(ROWS, shapes.encoders, strict=True)):
        lines = [f"encoder {level + 1}", describe(shape), "(conv 3³, PReLU) × 2, + input"]
        drawing.box(ENCODER_X, top, BLOCK_WIDTH, BLOCK, "convolution", lines)
        bottom = ROWS[level + 1] if level < 4 else ROWS[4] + BLOCK + 68
        drawing.arrow((center, top + BLOCK), (center, bottom - 1))
        stride = "halved" if level < 3 else "same size"
        drawing.text(center + 8, top + BLOCK + 21, f"down, Eq. 5: {stride},", "start")
        drawing.text(center + 8, top + BLOCK + 38, f"to {shapes.downs[level][0]} channels", "start")


def draw_context(drawing: Drawing, shapes: Shapes) -> None:
    """The lowest row: convolution, position attention, convolution."""
    top = ROWS[4] + BLOCK + 68
    middle = top + BLOCK / 2
    drawing.box(ENCODER_X, top, BLOCK_WIDTH, BLOCK, "convolution", ["conv 3³, norm, PReLU", describe(shapes.context)])
    drawing.box(OPTION_X - 16, top - 46, OPTION_WIDTH + 32, BLOCK + 60, "option", [])
    center = OPTION_X + OPTION_WIDTH / 2
    drawing.text(center, top - 28, "`patch_size, embedding_size")
    drawing.text(center, top - 11, "sequence of patches, Eq. 1-4")
    lines = ["position attention", "PAM, Eq. 8-9", describe(shapes.context)]
    drawing.box(OPTION_X, top, OPTION_WIDTH, BLOCK, "attention", lines)
    drawing.arrow((ENCODER_X + BLOCK_WIDTH, middle), (OPTION_X - 1, middle))
    drawing.box(DECODER_X, top, BLOCK_WIDTH, BLOCK, "convolution", ["conv 3³, norm, PReLU", describe(shapes.context)])
    drawing.arrow((OPTION_X + OPTION_WIDTH, middle), (DECODER_X - 1, middle))
    x = DECODER_X + BLOCK_WIDTH / 2
    drawing.arrow((x, top), (x, ROWS[3] + BLOCK + 1))
    lines = ["in every attention, Eq. 6-7", "`attention_heads", "`attention_scaled", "`attention_reduction"]
    drawing.box(HEAD_X, top - 20, OPTIONS_WIDTH, BLOCK + 22, "option", lines)


def draw_decoder(drawing: Drawing, shapes: Shapes) -> None:
    """Four levels at the right, upwards, with skips from the encoder and a map of each."""
    center, gate_x = DECODER_X + BLOCK_WIDTH / 2, DECODER_X + BLOCK_WIDTH + 4
    for level, (top, shape) in enumerate(zip(reversed(ROWS[:4]), shapes.decoders, strict=True)):
        lines = [f"decoder {level + 1}", describe(shape), "(conv 3³, PReLU) × 3, + input"]
        drawing.box(DECODER_X, top, BLOCK_WIDTH, BLOCK, "convolution", lines)
        middle = top + BLOCK / 2
        drawing.arrow((ENCODER_X + BLOCK_WIDTH, middle), (DECODER_X - 1, middle))
        drawing.text(ENCODER_X + BLOCK_WIDTH + 30, middle - 7, "skip")
        drawing.box(gate_x, top, GATE_WIDTH, BLOCK, "attention", ["gate"])
        if level < 3:
            above = ROWS[2 - level] + BLOCK
            x, turn = gate_x + GATE_WIDTH / 2, above + 24
            drawing.arrow((x, top), (x, turn), (center, turn), (center, above + 1))
            drawing.text(center + 8, top - 6, "up × 2: conv 2³, PReLU")
        classes, *size = shapes.heads[level]
        factor = shapes.image[1] // size[0]
        lines = [f"conv 1³ to {classes}", f"trilinear × {factor}", "softmax"]
        drawing.box(HEAD_X, top, HEAD_WIDTH, BLOCK, "output", lines)
        drawing.arrow((gate_x + GATE_WIDTH, middle), (HEAD_X - 1, middle))
        drawing.arrow((HEAD_X + HEAD_WIDTH, middle), (FUSION_X - 1, middle))
    for line, y in (("in training, the", 56), ("coarse maps too: Eq. 19", 39)):
        drawing.text(HEAD_X + HEAD_WIDTH - 22, ROWS[0] - y, line, "end")


def draw_fusion(drawing: Drawing, shapes: Shapes) -> None:
    """The maps' mean, at the right border."""
    bottom = ROWS[3] + BLOCK
    lines = ["fusion", "mean", "of the", f"{len(shapes.heads)} maps", "Eq. 18"]
    drawing.box(FUSION_X, ROWS[0], FUSION_WIDTH, bottom - ROWS[0], "output", lines)
    middle = FUSION_X + FUSION_WIDTH / 2
    drawing.arrow((middle, ROWS[0]), (middle, ROWS[0] - 30))
    drawing.text(FUSION_X + FUSION_WIDTH, ROWS[0] - 39, "log-probabilities", "end", bold=True)
    lines = ["instead of the mean, Sec. 3.5", "`fusion_weights", "`pyramid_pooling"]
    drawing.box(HEAD_X, bottom + 34, OPTIONS_WIDTH, 66, "option", lines)
    drawing.arrow((middle, bottom + 34), (middle, bottom + 1), dashed=True)


def draw_options(drawing: Drawing) -> None:
    """The options that sit on the levels of the encoder and decoder, between the two."""
    for top, lines in (
        (ROWS[0] + 48, ["after each up-sampling", "`cross_attention", "Sec. 3.3"]),
        (ROWS[1] + 48, ["instead of convolutions", "`multi_scale", "Eq. 14-17"]),
        (ROWS[2] + 48, ["norm before each PReLU", "`stage_norm", "not in the paper"]),
    ):
        drawing.box(OPTION_X, top, OPTION_WIDTH, 62, "option", lines)
        drawing.arrow((OPTION_X + OPTION_WIDTH, top + 7), (DECODER_X - 1, top + 7), dashed=True)
    drawing.arrow((OPTION_X, ROWS[2] + 55), (ENCODER_X + BLOCK_WIDTH + 1, ROWS[2] + 55), dashed=True)
    lines = ["PAM at other levels", "`attention_levels", "Sec. 3.5"]
    drawing.box(OPTION_X, ROWS[4] - 34, OPTION_WIDTH, 62, "option", lines)
    drawing.arrow((OPTION_X, ROWS[4] + 20), (ENCODER_X + BLOCK_WIDTH + 1, ROWS[4] + 20), dashed=True)


def draw_legend(drawing: Drawing) -> None:
    """What colours and dashes mean, at the bottom."""
    entries = (
        ("convolution", "convolutions"), ("attention", "attention: PAM; gate, Eq. 10-12"), ("output", "output"),
        ("option", "option, off by default (name of the argument)"),
    )  # fmt: skip
    x = ENCODER_X
    for kind, words in entries:
        drawing.box(x, HEIGHT - 38, 24, 16, kind, [])
        drawing.text(x + 31, HEIGHT - 25, words, "start")
        x += 31 + 7 * len(words) + 26


def draw() -> Drawing:
    """Return the drawing of the default network."""
    shapes = measure_shapes()
    title = f"MPU-Net as configured: {shapes.parameters:,} parameters"
    description = (
        "Encoder of five levels at the left, position attention at the bottom, decoder of four levels with attention "
        "gates at the right, four output maps fused to one. Options are dashed."
    )
    drawing = Drawing(title, description)
    drawing.text(WIDTH / 2, 24, title, bold=True)
    subtitle = "channels × size, for a training crop; dropout in training after encoders 2-5, decoders 1-3"
    drawing.text(WIDTH / 2, 44, subtitle)
    draw_encoder(drawing, shapes)
    draw_options(drawing)
    draw_context(drawing, shapes)
    draw_decoder(drawing, shapes)
    draw_fusion(drawing, shapes)
    draw_legend(drawing)
    return drawing


def main(path: str = "docs/architecture.svg") -> None:
    """Draw the network.

    Args:
        path: of the SVG.
    """
    draw().write(Path(path))


if __name__ == "__main__":
    run_command(main)
