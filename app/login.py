"""The page that asks who is there. It is one file: nothing else is served before."""

from __future__ import annotations

import html

from app import text_auth
from app.text import TITLE
from app.theme import ACCENT, CHALK, INK, NIGHT, PAPER, SANS

STYLE = f"""
:root {{color-scheme: light dark}}
body {{margin: 0; min-height: 100vh; display: grid; place-items: center; background: {PAPER}; color: {INK};
  font: 16px/1.5 {", ".join(name if "-" in name or name.islower() else f"'{name}'" for name in SANS)}}}
main {{width: min(340px, calc(100vw - 32px)); box-sizing: border-box; padding: 28px; background: #fff;
  border: 1px solid #e5e1da; border-radius: 14px}}
h1 {{font-size: 1.4rem; letter-spacing: -.02em; margin: 0 0 18px}}
h1::before {{content: ""; display: inline-block; width: .62em; height: .62em; margin-right: .4em; border-radius: .16em;
  background: linear-gradient(135deg, {ACCENT} 50%, #d98a2b 50%)}}
label {{display: block; font-weight: 600; margin: 12px 0 4px}}
input {{width: 100%; box-sizing: border-box; font: inherit; padding: 9px 11px; border: 1px solid #8d877d;
  border-radius: 8px; background: #fdfcfb; color: inherit}}
button {{width: 100%; margin-top: 20px; font: inherit; font-weight: 600; padding: 10px; border: 0; border-radius: 8px;
  color: #fff; background: {ACCENT}; cursor: pointer}}
:focus-visible {{outline: 2px solid {ACCENT}; outline-offset: 2px}}
p {{margin: 0 0 8px; padding: 8px 12px; border-radius: 8px; background: #fff4ed; color: #7c2d12}}
@media (prefers-color-scheme: dark) {{
  body {{background: {NIGHT}; color: {CHALK}}} main {{background: #1f1d1a; border-color: #37332d}}
  input {{background: #171513}} button {{background: #1a8278}} p {{background: #2c1a12; color: #f6c3a5}}
}}
"""


def login_page(problem: str = "", name: str = "") -> str:
    """Return the log-in page as HTML, with what was wrong last time."""
    said = f"<p role='alert'>{html.escape(problem)}</p>" if problem else ""
    focus = ("", " autofocus") if name else (" autofocus", "")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{text_auth.LOG_IN} · {TITLE}</title><style>{STYLE}</style><main><h1>{TITLE}</h1>{said}"
        f"<form method=post action='/login'><label for=name>{text_auth.NAME}</label>"
        f"<input id=name name=name autocomplete=username maxlength=64 value='{html.escape(name)}'{focus[0]}>"
        f"<label for=password>{text_auth.PASSWORD}</label>"
        f"<input id=password name=password type=password autocomplete=current-password required{focus[1]}>"
        f"<button>{text_auth.LOG_IN}</button></form></main></html>"
    )
