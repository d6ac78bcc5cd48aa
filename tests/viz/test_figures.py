"""Figures: the pixels that were given are the pixels that are shown, described in words."""

import io
import math
from fractions import Fraction

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from gsgen_lib import viz
from gsgen_lib.viz import figures

RED, GREEN, BLUE = (torch.eye(3)[i].expand(8, 8, 3) for i in range(3))


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB"))


def share_of(picture, color):
    """Fraction of the picture's pixels that have exactly this colour."""
    return (pixels(picture) == np.asarray(color)).all(-1).mean()


# ------------------------------------------------------------------------------------- images in


def test_as_images_composites_straight_alpha_on_white():
    rgba = torch.tensor([0.2, 0.4, 0.6, 0.25]).expand(1, 2, 2, 4)
    expected = [0.25 * 0.2 + 0.75, 0.25 * 0.4 + 0.75, 0.25 * 0.6 + 0.75]
    np.testing.assert_allclose(viz.as_images(rgba)[0, 0, 0], expected, atol=1e-6)
    as_bytes = (rgba * 255).round().to(torch.uint8)
    np.testing.assert_allclose(viz.as_images(as_bytes)[0, 0, 0], expected, atol=4e-3)


def test_as_images_takes_tensors_arrays_and_lists():
    batch = torch.rand(3, 4, 5, 3, requires_grad=True)
    for images in (batch, batch.detach().numpy(), list(batch), [batch[:2], batch[2].detach().numpy()]):
        np.testing.assert_array_equal(viz.as_images(images), batch.detach().numpy())
    assert viz.as_images(batch[0]).shape == (1, 4, 5, 3)
    assert viz.as_images(3 * batch - 1).min() == 0 and viz.as_images(3 * batch).max() == 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 5, 5), "got shape"),
        (torch.zeros(0, 4, 4, 3), "got shape"),
        (torch.full((4, 4, 3), torch.nan), "non-finite"),
        ([], "empty list"),
        ([torch.zeros(4, 4, 3), torch.zeros(5, 4, 3)], "different sizes"),
        ("picture.png", "wanted numbers"),
    ],
)
def test_as_images_refuses(images, message):
    with pytest.raises(ValueError, match=f"images.*{message}"):
        viz.as_images(images)


# -------------------------------------------------------------------------------------- figures


def test_film_strip_shows_the_picked_images_unchanged():
    strip = viz.film_strip([RED, GREEN, BLUE, RED], n=2, cell=1.0)  # picks 0 and 2
    assert share_of(strip, (255, 0, 0)) > 0.3 and share_of(strip, (0, 0, 255)) > 0.3
    assert share_of(strip, (0, 255, 0)) == 0
    columns = (pixels(strip) == (0, 0, 255)).all(-1).any(0).nonzero()[0]
    assert columns.min() > (pixels(strip) == (255, 0, 0)).all(-1).any(0).nonzero()[0].max()


def test_frames_are_picked_at_equal_steps_rounded_down():
    assert figures.pick_evenly(7, 4) == [0, 1, 3, 5]  # 0, 1.75, 3.5, 5.25
    for count in range(1, 30):
        for n in range(1, 12):
            want = sorted({math.floor(Fraction(i * count, n)) for i in range(n)})
            assert figures.pick_evenly(count, n) == want


def test_pixels_are_squares_not_smoothed():
    checker = (torch.arange(4)[:, None] + torch.arange(4)[None]) % 2
    strip = viz.film_strip(checker[..., None].expand(4, 4, 3).float()[None], cell=2.0)
    levels, counts = np.unique(pixels(strip), return_counts=True)
    assert counts[(levels > 2) & (levels < 253)].sum() < 0.01 * counts.sum()


def test_grid_holds_every_image_and_compare_aligns_columns():
    grid = viz.image_grid([RED, GREEN, BLUE], columns=2)
    assert all(share_of(grid, color) > 0.1 for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    error = torch.rand(2, 8, 8)
    error[:, :2] = torch.nan  # no value here
    table = viz.compare({"target": [RED, GREEN], "render": torch.stack([RED, GREEN]), "error": error},
                        columns=["a", "b"], captions={"render": ["inf dB", "inf dB"]}, title="Equal")
    assert table.alt == "Equal: 2 columns; rows from top to bottom: target, render, error"
    boxes = np.array([axis.get_position().bounds for axis in table.figure.axes[:6]]).reshape(3, 2, 4)
    np.testing.assert_allclose(boxes[:, :, 0], boxes[:1, :, 0].repeat(3, 0), atol=1e-3)  # same left
    np.testing.assert_allclose(boxes[:, :, 2], boxes[0, 0, 2], atol=1e-3)  # same width
    assert share_of(table, (255, 0, 0)) > 0.05
    assert "error" in [axis.get_ylabel() for axis in table.figure.axes]


def test_map_limits_are_kept():
    table = viz.compare({"depth": torch.rand(2, 4, 4, 1)}, limits={"depth": (0, 5)})
    assert [axis.images[0].get_clim() for axis in table.figure.axes if axis.images] == [(0, 5)] * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: viz.film_strip([RED], labels=["a", "b"]), "labels: got 2 texts, wanted 1"),
        (lambda: viz.film_strip([RED], n=0), "n: got 0"),
        (lambda: viz.image_grid([RED], columns=0), "columns: got 0"),
        (lambda: viz.compare({}), "rows: got none"),
        (lambda: viz.compare({"a": [RED], "b": [RED, RED]}), "rows: got different numbers"),
        (lambda: viz.compare({"a": [RED]}, captions={"b": ["x"]}), "captions: got"),
        (lambda: viz.compare({"a": [RED]}, columns=["x", "y"]), "columns: got 2 texts"),
        (lambda: viz.compare({"a": torch.full((1, 5, 5), torch.nan)}), "holds no value but NaN"),
        (lambda: viz.compare({"a": torch.full((1, 5, 5), torch.inf)}), "non-finite"),
        (lambda: viz.Picture(Figure(), alt=" "), "alt: got an empty text"),
        (lambda: viz.Picture(b"GIF89a", alt="x"), "not a PNG"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------------------------- pictures


def test_alt_text_goes_with_the_image_into_the_notebook(tmp_path):
    strip = viz.film_strip([RED, BLUE], labels=["0°", "90°"], title="A cube")
    assert strip.alt == "A cube: 2 images in a row: 0°, 90°"
    data, metadata = strip._repr_mimebundle_()
    assert data["text/plain"] == strip.alt and metadata["image/png"]["alt"] == strip.alt
    assert strip.save(tmp_path / "new" / "strip.png").read_bytes() == strip.png
    again = viz.film_strip([RED, BLUE], labels=["0°", "90°"], title="A cube")
    assert again.png == strip.png  # no time stamp in the file


def test_settings_and_backend_are_left_alone():
    before = dict(matplotlib.rcParams)  # the backend is one of them
    viz.image_grid([RED, GREEN])
    assert dict(matplotlib.rcParams) == before


def test_show_alt_closes_a_pyplot_figure():
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure()
    picture = viz.show_alt(figure, "an empty figure")
    assert picture.alt == "an empty figure" and not plt.fignum_exists(figure.number)
