"""The picture of the normalised axes agrees with the library."""

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

WEIGHTS = "weight_norm,\nweight_standardization"

#: For each function that is drawn: its panel, a call of x and gamma, and the shape of gamma.
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
    "power_norm": (ON_AXIS, lambda x, g: ln.power_norm(x), None),
    "local_contrast_norm": (
        "local_contrast_norm",
        lambda x, g: ln.local_contrast_norm(x, size=3),
        None,
    ),
    "weight_norm": (WEIGHTS, ln.weight_norm, (SIZE,)),
    "weight_standardization": (WEIGHTS, lambda x, g: ln.weight_standardization(x), None),
    "dynamic_tanh": ("dynamic_tanh", lambda x, g: ln.dynamic_tanh(x, np.asarray(0.5), g), (SIZE,)),
}
MIXES = ["batch_instance_norm", "switchable_norm"]

PLACES = list(itertools.product(range(SIZE), repeat=3))


def drawn(elements):
    return [place for place in PLACES if elements(*place)]


def test_every_operation_is_in_the_picture_and_here():
    operations = {name.removesuffix("_backward") for name in ln.__all__ if "_backward" in name}
    assert operations == {*MIXES, *(name.partition(" ")[0] for name in CALLS)}
    picture = (DOCS / "normalized-axes.svg").read_text(encoding="utf-8")
    assert [name for name in operations if name not in picture] == []
    assert {panel for panel, *_ in CALLS.values()} == set(PANELS)


@pytest.mark.parametrize("function", CALLS)
def test_the_elements_that_share_statistics(function):
    title, call, parameter = CALLS[function]
    statistic = PANELS[title].statistic
    middle = function == "local_contrast_norm"  # the window is drawn about another element
    centre = (LAST, LAST - 1, LAST - 1) if middle else (LAST, LAST, LAST)
    spoilers = []
    for place in PLACES:
        x = np.random.default_rng(0).normal(size=(SIZE, SIZE, SIZE))
        x[place] = np.nan  # which spoils whatever has its statistics
        with np.errstate(invalid="ignore"):
            y = call(x, np.ones(parameter or ()))
        if np.isnan(y[centre]):
            spoilers.append(place)
    assert spoilers == (drawn(statistic) if statistic else [centre])


@pytest.mark.parametrize("function", CALLS)
def test_the_elements_that_share_parameters(function):
    title, call, parameter = CALLS[function]
    if parameter is None:
        assert "none" in PANELS[title].parameter_text or PANELS[title].parameter is None
        return
    x = np.random.default_rng(0).normal(size=(SIZE, SIZE, SIZE))
    gamma = np.ones(parameter)
    before = call(x, gamma)
    gamma[(LAST,) * gamma.ndim] = 2
    changed = call(x, gamma) != before
    assert [place for place in PLACES if changed[place]] == drawn(PANELS[title].parameter)


def test_the_picture_is_what_the_program_draws(tmp_path):
    normalized_axes.draw(tmp_path / "drawn.svg")
    new, kept = (
        path.read_text(encoding="utf-8")
        for path in (tmp_path / "drawn.svg", DOCS / "normalized-axes.svg")
    )
    assert new == kept, "draw it anew: python docs/normalized_axes.py docs/normalized-axes.svg"
