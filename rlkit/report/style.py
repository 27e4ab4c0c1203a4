"""How the run report looks: its style sheet, light or dark by the reader's own setting, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --dim: #68717c; --page: #fbfbfa; --card: #fff; --rule: #e3e4e1;
  --c0: #1f6fb2; --c1: #d9740b; --c2: #2a8a57; --c3: #8a4fb0; --c4: #b8323c; --c5: #6b7a1a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e8; --dim: #99a1aa; --page: #16181b; --card: #1e2125;
  --rule: #33373d;
  --c0: #6cb2ec; --c1: #f3a04c; --c2: #67c492; --c3: #c297e2; --c4: #f0808a; --c5: #c0ce63; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 19px; margin: 36px 0 10px; } h3 { font-size: 15px;
  margin: 16px 0 4px; }
.facts span { margin-right: 18px; color: var(--dim); } .facts b { color: var(--ink);
  } .note, small { color: var(--dim); }
.note { font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 6px 0 12px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px 4px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
th:first-child { text-align: left; } thead th { color: var(--dim); font-weight: 500; } tbody th { font-weight: 500; }
tr.baseline th { font-weight: 400; font-style: italic; } tr.ceiling { color: var(--dim); }
table.samples { width: 100%; } .samples td, .samples th { text-align: left; white-space: normal; }
.samples pre { max-height: 7.5em; max-width: 34em; }
pre { margin: 0; font: 12.5px/1.4 ui-monospace, monospace; white-space: pre-wrap; overflow: auto;
  overflow-wrap: anywhere; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--dim); } details pre { margin-top: 8px; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 14px; }
.wide { max-width: 760px; } .wide figure { margin-bottom: 14px; }
figure { margin: 0; padding: 10px 12px 6px; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
figcaption { font-size: 13.5px; font-weight: 500; margin-bottom: 4px; }
svg { display: block; width: 100%; height: auto; }
.key { font-weight: 400; margin-left: 10px; } .key b { font-weight: 500; }
.k0 { color: var(--c0); } .k1 { color: var(--c1); } .k2 { color: var(--c2); } .k3 { color: var(--c3); }
.k4 { color: var(--c4); } .k5 { color: var(--c5); }
polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
polyline.s0 { stroke: var(--c0); } polyline.s1 { stroke: var(--c1); } polyline.s2 { stroke: var(--c2); }
polyline.s3 { stroke: var(--c3); } polyline.s4 { stroke: var(--c4); } polyline.s5 { stroke: var(--c5); }
circle.s0 { fill: var(--c0); } circle.s1 { fill: var(--c1); } circle.s2 { fill: var(--c2);
  } circle.s3 { fill: var(--c3); }
circle.s4 { fill: var(--c4); } circle.s5 { fill: var(--c5); }
.grid { stroke: var(--rule); stroke-width: 1; } .tick { font-size: 10.5px; fill: var(--dim); }
.label { font-size: 12.5px; fill: var(--ink); } .label.baseline { font-style: italic;
  } .label.ceiling { fill: var(--dim); }
.whisker { stroke-width: 2; stroke: var(--c0); } .dot { fill: var(--c0); }
.whisker.baseline { stroke: var(--dim); } .dot.baseline { fill: var(--dim); }
.whisker.ceiling { stroke: var(--dim); stroke-dasharray: 3 3; } .dot.ceiling { fill: var(--card);
  stroke: var(--dim); }
.bar { fill: var(--c0); }
@media print { .scroll, pre { overflow: visible; max-height: none; } }
"""


def html_table(headings: Sequence[str], rows: Sequence[str], kind: str = "") -> str:
    """Return a table that scrolls by itself where it is too wide.

    Args:
        headings: text.
        rows: finished ``<tr>`` elements.
        kind: a class of the style sheet.
    """
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{body}</table></div>'
