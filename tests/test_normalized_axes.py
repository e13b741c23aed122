"""The picture of the axes shows what the library does."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest

import ln_array_api as ln

pytest.importorskip("matplotlib", reason="matplotlib, which draws the picture, is not installed")

DOCS = Path(__file__).parents[1] / "docs"

spec = importlib.util.spec_from_file_location("normalized_axes", DOCS / "normalized_axes.py")
normalized_axes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(normalized_axes)

SIZE, LAST = normalized_axes.SIZE, normalized_axes.LAST
PANELS = {panel.title: panel for panel in normalized_axes.PANELS}
ON_AXIS = "layer_norm, rms_norm,\npower_norm: axis=-1"

#: For each function: its panel, a call of x and gamma, and the shape of gamma.
CALLS = {
    "batch_norm": ("batch_norm", lambda x, g: ln.batch_norm_forward(x, g).y, (SIZE,)),
    "instance_norm": ("instance_norm", ln.instance_norm, (SIZE,)),
    "group_norm": ("group_norm", lambda x, g: ln.group_norm(x, g, num_groups=2), (SIZE,)),
    "layer_norm of samples": (
        "layer_norm, axis=(1, 2)",
        lambda x, g: ln.layer_norm(x, g, axis=(1, 2)),
        (SIZE, SIZE),
    ),
    "layer_norm": (ON_AXIS, ln.layer_norm, (SIZE,)),
    "rms_norm": (ON_AXIS, ln.rms_norm, (SIZE,)),
    "weight_standardization": (
        "weight_norm,\nweight_standardization",
        lambda x, g: ln.weight_standardization(x),
        None,
    ),
}


def drawn(elements):
    places = itertools.product(range(SIZE), repeat=3)
    return np.asarray([elements(*place) for place in places]).reshape(SIZE, SIZE, SIZE)


@pytest.mark.parametrize("function", CALLS)
def test_the_elements_that_share_statistics(function):
    title, call, parameter = CALLS[function]
    x = np.random.default_rng(0).normal(size=(SIZE, SIZE, SIZE))
    x[LAST, LAST, LAST] = np.nan  # which spoils whatever has its statistics
    with np.errstate(invalid="ignore"):
        y = call(x, np.ones(parameter or ()))
    np.testing.assert_array_equal(np.isnan(y), drawn(PANELS[title].statistic))


@pytest.mark.parametrize("function", [name for name in CALLS if CALLS[name][2]])
def test_the_elements_that_share_parameters(function):
    title, call, parameter = CALLS[function]
    x = np.random.default_rng(0).normal(size=(SIZE, SIZE, SIZE))
    gamma = np.ones(parameter)
    before = call(x, gamma)
    gamma[(LAST,) * gamma.ndim] = 2
    np.testing.assert_array_equal(call(x, gamma) != before, drawn(PANELS[title].parameter))


def test_the_picture_is_what_the_program_draws(tmp_path):
    normalized_axes.draw(tmp_path / "drawn.svg")
    drawn, kept = (
        path.read_text(encoding="utf-8")
        for path in (tmp_path / "drawn.svg", DOCS / "normalized-axes.svg")
    )
    assert drawn == kept, "draw it anew: python docs/normalized_axes.py docs/normalized-axes.svg"
