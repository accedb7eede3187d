"""Pages of pictures for a browser: one file without a network, which the keyboard works as well as the mouse.

What every page of clipskip has is here: look, table of cells, viewer. Knows sheets; trusts no text in them.
"""

from __future__ import annotations

import base64
import json
from html import escape
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from . import metadata
from .fields import location, written
from .request import FIELDS

if TYPE_CHECKING:
    from .result import Result
    from .sheet import Sheet

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif }
body { margin: 1rem } h1 { font-size: 1.2rem } h2 { font-size: 1rem } .wide { overflow-x: auto }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; overflow-wrap: anywhere }
dt { opacity: .7 } dd { margin: 0; white-space: pre-wrap }
th { font-weight: normal; max-width: 16rem; padding: .2rem .4rem; overflow-wrap: break-word }
td { padding: 2px } td button { padding: 0; border: 0; background: none; cursor: zoom-in; display: block }
td img { display: block; max-width: 16rem; max-height: 16rem } td button:focus-visible { outline: 3px solid Highlight }
dialog { max-width: 96vw; max-height: 96vh } dialog img { max-width: 100%; display: block; image-rendering: pixelated }
.none { width: 4rem; text-align: center; opacity: .6 }
"""
SCRIPT = """
const box = document.querySelector('dialog'), KEYS =
  {ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], PageUp: [0, 0, -1],
   PageDown: [0, 0, 1]};
let at = null;
function show(cell) {
  at = cell;
  const picture = at.firstElementChild, told = JSON.parse(at.dataset.told);
  box.querySelector('h2').textContent = picture.alt;
  box.querySelector('img').src = picture.src;
  box.querySelector('img').alt = picture.alt;
  box.querySelector('a').href = picture.src;
  box.querySelector('a').download = `cell-${at.dataset.place.replaceAll(',', '-')}.png`;
  box.querySelector('dl').replaceChildren(...Object.entries(told).flatMap(pair => pair.map((text, i) =>
    Object.assign(document.createElement(i ? 'dd' : 'dt'), {textContent: text}))));
  if (!box.open) box.showModal();
}
document.addEventListener('click', event => {
  const cell = event.target.closest('td button');
  if (cell) show(cell);
});
box.onclose = () => at.focus();
box.querySelector('button').onclick = () => box.close();
document.addEventListener('keydown', event => {
  const from = box.open ? at : document.activeElement.closest('td button');
  if (!(event.key in KEYS) || !from || event.ctrlKey || event.altKey || event.metaKey) return;
  const place = from.dataset.place.split(',').map((part, i) => +part + KEYS[event.key][i]);
  const next = document.querySelector(`td button[data-place="${place.join()}"]`);
  event.preventDefault();
  if (next) box.open ? show(next) : next.focus();
});
"""
VIEWER = """<dialog aria-labelledby="name"><form method="dialog"><button type="button">Close</button> <a>Save</a></form>
<h2 id="name"></h2><img src="data:," alt=""><dl></dl></dialog>"""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width"><title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1>{locked}
<p>A click, or Enter, shows a cell in full size with its settings; arrow keys go to the next one, Escape back.</p>
{tables}
{viewer}
<script>{script}</script></body></html>
"""


def of_sheet(sheet: Sheet) -> str:
    """A sheet as a page: its pictures are whole PNGs with their requests, so a saved one can be repeated."""
    columns, rows, blocks = sheet.labels
    cells, names, tables = iter(enumerate(sheet.results)), sheet.names(), []
    for z, block in enumerate(blocks):
        lines = ["<tr><td></td>" + "".join(f'<th scope="col">{escape(label)}</th>' for label in columns) + "</tr>"]
        for y, row in enumerate(rows):
            own = islice(cells, len(columns))
            drawn = "".join(_cell(result, names[i], (x, y, z)) for x, (i, result) in enumerate(own))
            lines.append(f'<tr><th scope="row">{escape(row)}</th>{drawn}</tr>')
        title = f"<h2>{escape(block)}</h2>" if block else ""
        tables.append(f'{title}<div class="wide"><table>{"".join(lines)}</table></div>')
    locked = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in sheet.locked().items())
    fixed = {"policy": escape(POLICY), "style": STYLE, "viewer": VIEWER, "script": SCRIPT, "title": "clipskip sheet"}
    return PAGE.format(**fixed, locked=f"<dl>{locked}</dl>", tables="\n".join(tables))


def _cell(result: Result | None, name: str, place: tuple[int, int, int]) -> str:
    """A cell of the table, with its settings as JSON in an attribute."""
    if result is None:
        return '<td class="none">not made</td>'
    request = result.origin(0).request
    told = {field: written(getattr(request, field)) for field, row in FIELDS.items()
            if getattr(request, field) != row.default or field in ("steps", "cfg", "sampler")}  # fmt: skip
    attribute = escape(json.dumps({"model": result.model.name} | told))
    data, where = base64.b64encode(result.png()).decode(), ",".join(str(index + 1) for index in place)
    picture = f'<img src="data:image/png;base64,{data}" alt="{escape(name)}">'
    return f'<td><button type="button" data-place="{where}" data-told="{attribute}">{picture}</button></td>'


def save(sheet: Sheet, target: str | Path, overwrite: bool = True) -> None:
    """Write the page of a sheet in one step. FileExistsError, StorageError as a picture's."""
    metadata.write(Path(location("target", target)), of_sheet(sheet).encode("utf-8", "replace"), overwrite)
