"""Random calls, as many as there is time for."""

from __future__ import annotations

import sys
import time

import pytest

from . import fuzz
from .libraries import Library


def failure(call: fuzz.Call, library: Library) -> str:
    """What is wrong with a call, or nothing."""
    try:
        fuzz.check(call, library)
    except Exception as error:  # whatever it is, the call is to be named
        return f"{type(error).__name__}: {error}"
    return ""


def test_random_calls(library: Library, pytestconfig: pytest.Config) -> None:
    """Options of the suite say how many, how long and from which seed on, or which call alone."""
    option = pytestconfig.getoption
    if option("--fuzz-call"):
        fuzz.check(fuzz.parse(option("--fuzz-call")), library)
        return
    seconds, first = option("--fuzz"), option("--fuzz-seed")
    most = option("--fuzz-cases") or library.random_calls
    begin = said = time.monotonic()
    done = 0
    while time.monotonic() - begin < seconds if seconds else done < most:
        call = fuzz.random_call(library, first + done)
        wrong = failure(call, library)
        if wrong:
            call = fuzz.shrunk(call, lambda each: bool(failure(each, library)))
            pytest.fail(f"{failure(call, library)}\n{call}\nAgain, alone: {call.line()}")
        done += 1
        if time.monotonic() - said > 5:
            said = time.monotonic()
            print(f"{done} random calls, none wrong", file=sys.stderr, flush=True)
