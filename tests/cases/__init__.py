"""The table of all ops: each file holds one family of ops in its list CASES."""

from importlib import import_module
from pkgutil import iter_modules

from tests.cases.case import Case

_FAMILIES = [import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__) if file.name != "case"]

ALL_CASES: list[Case] = [case for family in _FAMILIES for case in family.CASES]
