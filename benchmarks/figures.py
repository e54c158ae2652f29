"""What all pictures share: colours, one for each method that they show, and the format."""

import io

from matplotlib.figure import Figure
from PIL import Image

# Okabe and Ito's colours, which are told apart with any colour vision; the markers do it in print.
BLUE, RED, GREEN, BLACK, PINK, ORANGE = "#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00"
STYLES = [(BLUE, "o"), (RED, "s"), (GREEN, "^"), (PINK, "D"), (ORANGE, "v"), (BLACK, "P")]


def png(figure: Figure) -> bytes:
    """In 256 colours, which is enough for drawings, and a third of the bytes."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight")
    Image.open(drawn).convert("RGB").quantize(256).save(small, "png", optimize=True)
    return small.getvalue()
