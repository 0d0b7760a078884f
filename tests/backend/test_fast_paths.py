"""The option --without-fast-paths does what it says."""

import minigrad
from minigrad.kernels import TWINS


def test_blocks_may_be_nested():
    before = {op: op.twins for op in TWINS}
    with minigrad.without_fast_paths():
        with minigrad.without_fast_paths():
            pass
        assert not any(op.twins for op in TWINS)
    assert {op: op.twins for op in TWINS} == before


def test_twins_are_off_if_and_only_if_asked(pytestconfig):
    assert all(bool(op.twins) != pytestconfig.getoption("--without-fast-paths") for op in TWINS)
