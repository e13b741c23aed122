"""The picture of the normalised axes agrees with the library."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest

import ln_array_api as ln
from ln_array_api._operations import OPERATIONS

DOCS = Path(__file__).parents[1] / "docs"

spec = importlib.util.spec_from_file_location("normalized_axes", DOCS / "normalized_axes.py")
normalized_axes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(normalized_axes)

SIZE, LAST = normalized_axes.SIZE, normalized_axes.LAST
PANELS = {panel.picture: panel for panel in normalized_axes.PANELS}

#: For functions with parameters or options: a call of x and gamma, and the shape of gamma.
SPECIAL_CALLS = {
    "batch_norm": (lambda x, g: ln.batch_norm_forward(x, g).y, (SIZE,)),
    "instance_norm": (ln.instance_norm, (SIZE,)),
    "group_norm": (lambda x, g: ln.group_norm(x, g, num_groups=2), (SIZE,)),
    "layer_norm": (ln.layer_norm, (SIZE,)),
    "rms_norm": (ln.rms_norm, (SIZE,)),
    "local_contrast_norm": (lambda x, g: ln.local_contrast_norm(x, size=3), None),
    "weight_norm": (ln.weight_norm, (SIZE,)),
    "dynamic_tanh": (lambda x, g: ln.dynamic_tanh(x, np.asarray(0.5), g), (SIZE,)),
}


def call_of(name):
    """A call of x and gamma, and the shape of gamma."""
    return SPECIAL_CALLS.get(name, (lambda x, g: getattr(ln, name)(x), None))


#: For each function that is drawn: its panel, a call of x and gamma, and the shape of gamma.
CALLS = {
    "layer_norm of samples": (
        "samples",
        lambda x, g: ln.layer_norm(x, g, axis=(1, 2)),
        (SIZE, SIZE),
    ),
    **{
        each.name: (each.picture, *call_of(each.name))
        for each in OPERATIONS
        if each.picture != "mixes"
    },
}

PLACES = list(itertools.product(range(SIZE), repeat=3))


def drawn(elements):
    return [place for place in PLACES if elements(*place)]


def test_every_operation_is_in_the_picture_and_here():
    picture = (DOCS / "normalized-axes.svg").read_text(encoding="utf-8")
    assert [each.name for each in OPERATIONS if each.name not in picture] == []
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
    pytest.importorskip("matplotlib", reason="matplotlib, which draws the picture, is missing")
    normalized_axes.draw(tmp_path / "drawn.svg")
    new, kept = (
        path.read_text(encoding="utf-8")
        for path in (tmp_path / "drawn.svg", DOCS / "normalized-axes.svg")
    )
    assert new == kept, "draw it anew: python docs/normalized_axes.py docs/normalized-axes.svg"
