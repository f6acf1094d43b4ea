"""Draws the output of a task for people: single values in a list, lists of records as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TextIO

import attrs

from agentcore.errors import text_of

Row = Sequence[str]

LONGEST: Final = 50
"""How many rows of a list are drawn; nobody reads a thousand."""


@attrs.frozen
class Canvas:
    """What is drawn on.

    Attributes:
        width: in columns.
        colours: whether it obeys the escape sequences of a terminal.
        ascii_only: whether it can show nothing else.
    """

    width: int = 100
    colours: bool = False
    ascii_only: bool = False


def render(output: Mapping[str, Any], stream: TextIO, canvas: Canvas = Canvas()) -> None:
    """Draw an output, with rich if it is there, else as plain text."""
    try:
        import rich  # noqa: F401, PLC0415 - an extra
    except ImportError:
        _write_plain(output, stream)
    else:
        _write_rich(output, stream, canvas)


def tables(output: Mapping[str, Any]) -> Iterator[tuple[str, Row, list[Row]]]:
    """Yield what to draw: a title, heads of columns, rows. Single values, and what is empty, come first and untitled."""
    scalars: list[Row] = [
        (_label(key), "none" if _is_compound(value) else _cell(value))
        for key, value in output.items()
        if not (value and _is_compound(value))
    ]
    if scalars:
        yield "", ("", ""), scalars
    for key, value in output.items():
        if not _is_compound(value) or not value:
            continue
        title = _label(key)
        if isinstance(value, Mapping):
            yield title, ("", ""), [(_cell(str(name)), _cell(item)) for name, item in value.items()]
            continue
        items = value[:LONGEST]
        if len(value) > LONGEST:
            title = f"{title} (the first {LONGEST} of {len(value):,}; all of them with --output json)"
        if all(isinstance(item, Mapping) for item in items):
            columns = list(dict.fromkeys(name for item in items for name in item))
            rows: list[Row] = [[_cell(item.get(name)) for name in columns] for item in items]
            yield title, [_label(name) for name in columns], rows
        else:
            yield title, ("",), [(_cell(item),) for item in items]


def _is_compound(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, Sequence) and not isinstance(value, str | bytes))


def _label(key: object) -> str:
    return _cell(str(key).replace("_", " "))


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            text = "yes" if value else "no"
        case int():
            text = f"{value:,}"
        case float():
            text = f"{value:,.2f}"
        case Mapping():
            text = ", ".join(f"{name}: {_cell(item)}" for name, item in value.items())
        case list() | tuple():
            text = ", ".join(map(_cell, value))
        case _:
            text = text_of(value)
    return printable(text)


def printable(text: str) -> str:
    """Return a text with everything escaped that a terminal might obey: what is shown comes out of foreign files."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _is_number(cell: str) -> bool:
    return cell != "" and cell[0] in "0123456789-" and all(char in "0123456789.,-" for char in cell)


def _numeric_columns(rows: list[Row], count: int) -> list[bool]:
    return [all(_is_number(row[column]) or not row[column] for row in rows) for column in range(count)]


def _write_plain(output: Mapping[str, Any], stream: TextIO) -> None:
    for number, (title, heads, rows) in enumerate(tables(output)):
        if number:
            stream.write("\n")
        if title:
            stream.write(f"{title.upper()}\n")
        lines = [heads, *rows] if any(heads) else rows
        widths = [max((len(line[column]) for line in lines), default=0) for column in range(len(heads))]
        right = _numeric_columns(rows, len(heads))
        for line in lines:
            cells = [
                cell.rjust(size) if to_right else cell.ljust(size)
                for cell, size, to_right in zip(line, widths, right, strict=True)
            ]
            stream.write(f"{'  '.join(cells).rstrip()}\n")


def _write_rich(output: Mapping[str, Any], stream: TextIO, canvas: Canvas) -> None:
    from rich import box  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(file=stream, width=canvas.width, force_terminal=canvas.colours, highlight=False)
    for title, heads, rows in tables(output):
        table = Table(
            title=Text(title) if title else None,
            title_justify="left",
            title_style="bold",
            box=box.ASCII if canvas.ascii_only else box.SIMPLE_HEAD,
            show_header=any(heads),
        )
        for head, to_right in zip(heads, _numeric_columns(rows, len(heads)), strict=True):
            table.add_column(Text(head), justify="right" if to_right else "left", overflow="fold")
        for row in rows:
            # Text: what comes out of files is no markup.
            table.add_row(*map(Text, row))
        console.print(table)
