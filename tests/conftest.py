"""What all tests have in common: random numbers that do not depend on which tests ran before."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order(request: pytest.FixtureRequest) -> None:
    """A module's `RNG` starts afresh for each of its tests."""
    rng = getattr(request.module, "RNG", None) if request.module else None
    if rng is not None:
        rng.bit_generator.state = np.random.default_rng(0).bit_generator.state
