"""Equations of the site: LaTeX becomes MathML, which browsers draw without a script."""

import re
from typing import Any

from latex2mathml.converter import convert

NUMBER = re.compile(r"\\tag\{(.+?)\}")


def fence(source: str, *_: Any, **__: Any) -> str:
    """Draw a block ```` ```math ````; `\\tag{1}` puts its number at the right, as on the repository page."""
    number = NUMBER.search(source)
    drawn = convert(NUMBER.sub("", source).strip(), display="block")
    told = f'<span class="equation-number">({number[1]})</span>' if number else ""
    return f'<div class="equation">{drawn}{told}</div>'
