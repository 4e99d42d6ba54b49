"""The HTML of the run report: escaping, tables, tiles, tabs and the style sheet. No script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Literal

from foreshare.runtime.tables import printable

# Twenty colours that stay apart for people with normal, red-weak and green-weak sight, on light and on dark ground
# (farthest-point search in OKLab under the dichromacy matrices of Machado et al., IEEE TVCG 15(6), 2009). The first
# ones lie farthest apart.
PALETTE = (
    "#246daa", "#e7db0c", "#6d3100", "#00e7e7", "#0000ff", "#009e79", "#5592ff", "#6d2455", "#aa6d18", "#24f3aa",
    "#3124b6", "#00c2ff", "#49c279", "#007979", "#ce9200", "#4961db", "#aa3149", "#55b6b6", "#3d92b6", "#313d86",
)  # fmt: skip

# The page may load nothing and run nothing, whatever a VM is called.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

STYLE = """
:root{color-scheme:light dark;--ground:#f6f7f9;--card:#fff;--ink:#1b2430;--soft:#566173;--line:#dfe3e9;--grid:#e6e9ee;
--alloc:#2f6fb3;--alloc-fill:#bcd6f0;--demand:#b35900;--short:#d4286f;--mark:#7a8494;--good:#0b7a5b;--bad:#a8460b}
@media(prefers-color-scheme:dark){:root{--ground:#12161c;--card:#1b2129;--ink:#e6ebf2;--soft:#9aa7b8;--line:#303946;
--grid:#2a323d;--alloc:#69aeee;--alloc-fill:#264b70;--demand:#ffb454;--short:#ff6fa5;--mark:#8592a5;--good:#4fd0a5;
--bad:#ff9d5c}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1240px;margin:0 auto;padding:20px 16px 64px}
h1{font-size:1.55rem;line-height:1.2;margin:.2em 0}h2{font-size:1.15rem;margin:0 0 .35em}
h3{font-size:.98rem;margin:1.2em 0 .3em}
p{margin:.35em 0 .7em;max-width:80ch}.soft,figcaption,small{color:var(--soft)}.lead{font-size:1.06rem}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:14px 0 18px;font-size:.92rem}a{color:var(--alloc)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;margin:0 0 16px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(148px,1fr));gap:10px;margin:14px 0}
.tile{border:1px solid var(--line);border-radius:8px;padding:10px 12px;background:var(--card)}
.tile b{display:block;font-size:1.45rem;line-height:1.25;font-variant-numeric:tabular-nums}
.tile span{display:block;color:var(--soft);font-size:.84rem}.good,.tile .good{color:var(--good)}
.bad,.tile .bad{color:var(--bad)}p.full{max-width:none}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:5px 10px;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;white-space:nowrap}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.n{white-space:nowrap}
th.n{white-space:normal}
td{overflow-wrap:break-word;min-width:7em;max-width:44em}
td.n{min-width:0}td.about{color:var(--soft);min-width:16em}thead th{border-bottom-width:2px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:12px}
.grid.two{grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr))}
figure{margin:0;min-width:0}figcaption{font-size:.84rem;line-height:1.35;margin-bottom:2px}
figcaption b{color:var(--ink);overflow-wrap:anywhere}
.grid figure{border:1px solid var(--line);border-radius:8px;padding:8px 8px 4px}
svg{display:block;width:100%;height:auto}svg text{font-family:inherit}.wide svg{min-width:620px}
.keys{display:flex;flex-wrap:wrap;gap:4px 14px;margin:8px 0 12px;font-size:.86rem;padding:0;list-style:none}
.keys li{display:flex;align-items:center;gap:6px;min-width:0;overflow-wrap:anywhere}
i.chip{flex:none;width:16px;height:12px;border-radius:3px;display:inline-block;border:1px solid var(--line)}
i.rule{flex:none;width:20px;height:0;display:inline-block;border-top:2px solid}
.tabs>input{position:absolute;opacity:0;pointer-events:none}
.tabs>label{display:inline-block;padding:5px 14px;border:1px solid var(--line);border-radius:7px;margin:0 6px 12px 0;
cursor:pointer;font-size:.92rem}
.tabs>input:checked+label{background:var(--alloc);color:var(--card);border-color:var(--alloc)}
.tabs>input:focus-visible+label{outline:2px solid var(--ink);outline-offset:2px}.tabs>div{display:none}
details{margin:.8em 0}summary{cursor:pointer;color:var(--alloc)}
.tall{max-height:26em;overflow:auto}
@media print{.tabs>div{display:block!important}.tabs>label{display:none}section{break-inside:avoid-page}}
"""


def esc(text: object, limit: int = 60) -> str:
    """Return ``text`` fit for HTML: on one line, short, without control characters, and escaped."""
    return escape(printable(text, limit), quote=True)


def name(text: object, limit: int = 40) -> str:
    """Return a user's name as HTML, kept from turning the direction of the words around it."""
    return f"<bdi>{esc(text, limit)}</bdi>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Iterable[int] = (), about: int = -1) -> str:
    """Return a table of cells that are HTML already; columns in ``numeric`` stand to the right."""
    right = set(numeric)

    def kind(i: int) -> str:
        return ' class="n"' if i in right else ' class="about"' if i == about else ""

    top = "".join(f'<th{kind(i) if i in right else ""} scope="col">{cell}</th>' for i, cell in enumerate(head))
    body = "".join("<tr>" + "".join(f"<td{kind(i)}>{c}</td>" for i, c in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def tile(value: str, label: str, note: str = "", verdict: int = 0) -> str:
    """Return one headline number; ``note`` is coloured by ``verdict`` (+1 good, -1 bad)."""
    colour = {1: ' class="good"', -1: ' class="bad"'}.get(verdict, "")
    return f'<div class="tile"><b>{value}</b><span>{label}</span><span{colour}>{note}</span></div>'


def figure(svg: str, caption: str = "", wide: bool = False) -> str:
    """Return a figure with its caption (HTML) above it; a wide one scrolls on a narrow screen."""
    head = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure>{head}<div class="{"scroll wide" if wide else "scroll"}">{svg}</div></figure>'


def keys(items: Iterable[tuple[str, Literal["chip", "rule", "dashes", "dots"], str]]) -> str:
    """Return a legend: (CSS colour, shape, HTML label) for each entry."""
    border = {"rule": "solid", "dashes": "dashed", "dots": "dotted"}
    out = []
    for colour, shape, label in items:
        if shape == "chip":
            mark = f'<i class="chip" style="background:{colour}"></i>'
        else:
            mark = f'<i class="rule" style="border-top:2px {border[shape]} {colour}"></i>'
        out.append(f"<li>{mark}<span>{label}</span></li>")
    return f'<ul class="keys">{"".join(out)}</ul>'


def tabs(group: str, pages: Sequence[tuple[str, str]]) -> str:
    """Return pages of which one shows at a time, switched without a script. ``pages``: (title, HTML)."""
    heads, bodies, rules = [], [], []
    for i, (title, body) in enumerate(pages):
        tag = f"{group}-{i}"
        checked = " checked" if i == 0 else ""
        heads.append(f'<input type="radio" name="{group}" id="{tag}"{checked}><label for="{tag}">{title}</label>')
        bodies.append(f'<div class="{tag}">{body}</div>')
        rules.append(f"#{tag}:checked~.{tag}{{display:block}}")
    return f'<style>{"".join(rules)}</style><div class="tabs">{"".join(heads)}{"".join(bodies)}</div>'


def section(tag: str, title: str, body: str) -> str:
    """Return a section of the page that links can reach as ``#tag``."""
    return f'<section id="{tag}"><h2>{title}</h2>{body}</section>'


def page(title: str, body: str) -> str:
    """Return the whole document."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )
