"""Templates of tasks: plain names in braces."""

from __future__ import annotations

import string

from coldstream.errors import SettingsError


def template_variables(template: str) -> tuple[str, ...]:
    """The names in `{braces}`; `{{` and `}}` are literal braces.

    Raises:
        SettingsError: something other than a plain name stands in the braces.
    """
    names: list[str] = []
    try:
        for _, name, spec, conversion in string.Formatter().parse(template):
            if name is None:
                continue
            if not name.isidentifier() or spec or conversion:
                raise SettingsError(f"{{{name}}} in a template: only plain names stand in braces; write {{{{ for {{")
            names.append(name)
    except ValueError as exc:
        raise SettingsError(f"a template has unbalanced braces ({exc}); write {{{{ for a literal {{") from exc
    return tuple(dict.fromkeys(names))
