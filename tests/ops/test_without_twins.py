"""The option --without-twins does what it says."""

from minigrad.kernels import TWINS


def test_twins_are_off_if_and_only_if_asked(pytestconfig):
    assert all(bool(op.twins) != pytestconfig.getoption("--without-twins") for op in TWINS)
