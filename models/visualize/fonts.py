"""L6: fonts for names of files and classes, which may have characters that matplotlib's own font lacks."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

FALLBACKS = (  # of these, the installed ones are asked for characters that DejaVu Sans lacks
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "Yu Gothic", "MS Gothic", "Malgun Gothic", "PingFang SC",
    "Hiragino Sans GB", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS", "Noto Sans Devanagari",
    "Noto Sans Thai", "Noto Emoji",
)  # fmt: skip


@contextmanager
def fallback_fonts() -> Iterator[None]:
    """Text that is created and drawn within has the installed fallback fonts."""
    from matplotlib import rc_context

    with rc_context({"font.family": list(_families())}):
        yield


def drawable(text: str) -> str:
    """The text, with characters that are unprintable or in no font escaped, such as `\\u6c7d`: matplotlib would draw an
    empty box, and warn."""
    known = _characters()
    return "".join(c if c.isprintable() and ord(c) in known else ascii(c)[1:-1] for c in text)


@cache
def _families() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ("DejaVu Sans", *(family for family in FALLBACKS if family in installed))


@cache
def _characters() -> frozenset[int]:
    """The characters of these fonts."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(character for family in _families() for character in get_font(findfont(family)).get_charmap())
