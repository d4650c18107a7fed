"""Looks: one accent colour on warm greys, fonts that every system has, nothing fetched from anywhere."""

from __future__ import annotations

import gradio as gr
from gradio.themes.utils import colors, sizes

SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

PAPER, INK = "#faf9f7", "#1d1b18"
NIGHT, CHALK = "#161513", "#eceae6"
ACCENT, ACCENT_DARK = "#0f6b63", "#5fc7bb"

SERIES_COLORS: tuple[str, ...] = ("#0f8a7f", "#c2741a", "#7a5fd0")
COMPARED_COLORS: tuple[str, ...] = (
    "#0f8a7f",
    "#c2741a",
    "#7a5fd0",
    "#c8447c",
    "#3b7dd8",
    "#7c8a1f",
    "#a05a2c",
    "#6f7680",
)
"""Eight that differ in lightness as well as hue, for both backgrounds."""


def theme() -> gr.themes.Base:
    """Return the theme, light and dark."""
    made = gr.themes.Base(
        primary_hue=colors.teal,
        secondary_hue=colors.teal,
        neutral_hue=colors.stone,
        spacing_size=sizes.spacing_md,
        radius_size=sizes.radius_lg,
        text_size=sizes.text_md,
        font=SANS,
        font_mono=MONO,
    )
    return made.set(
        body_background_fill=PAPER,
        body_background_fill_dark=NIGHT,
        body_text_color=INK,
        body_text_color_dark=CHALK,
        body_text_color_subdued="#625d55",
        body_text_color_subdued_dark="#aaa59c",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1f1d1a",
        block_border_color="#e5e1da",
        block_border_color_dark="#37332d",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_text_color="#57524a",
        block_label_text_color_dark="#b9b4ab",
        block_title_text_weight="600",
        block_title_text_color=INK,
        block_title_text_color_dark=CHALK,
        block_info_text_color="#625d55",
        block_info_text_color_dark="#aaa59c",
        block_shadow="none",
        input_background_fill="#fdfcfb",
        input_background_fill_dark="#171513",
        input_border_color="#cfc9bf",
        input_border_color_dark="#4a453d",
        input_border_color_focus=ACCENT,
        input_border_color_focus_dark=ACCENT_DARK,
        input_border_width="1px",
        input_placeholder_color="#857f75",
        input_placeholder_color_dark="#8d877d",
        button_primary_background_fill=ACCENT,
        button_primary_background_fill_hover="#0b544e",
        button_primary_background_fill_dark="#1a8278",
        button_primary_background_fill_hover_dark="#156f67",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_secondary_background_fill="#f1eee9",
        button_secondary_background_fill_hover="#e6e2da",
        button_secondary_background_fill_dark="#2b2824",
        button_secondary_background_fill_hover_dark="#38342e",
        button_secondary_text_color=INK,
        button_secondary_text_color_dark=CHALK,
        button_large_text_weight="600",
        slider_color=ACCENT,
        slider_color_dark=ACCENT_DARK,
        checkbox_border_color="#857f75",
        checkbox_border_color_dark="#8d877d",
        checkbox_background_color_selected=ACCENT,
        checkbox_background_color_selected_dark="#1a8278",
        link_text_color=ACCENT,
        link_text_color_dark=ACCENT_DARK,
    )


CSS = """
.gradio-container {max-width: 1240px !important; width: 100%; margin: 0 auto !important; padding: 0 0 24px !important}
.gradio-container .html-container {padding: 0 !important}
.gradio-container {--color-accent: #0f6b63}
.dark .gradio-container, .dark.gradio-container {--color-accent: #5fc7bb}
.gradio-container p, .gradio-container figcaption {overflow-wrap: anywhere}
.gradio-container code {white-space: nowrap}
.settings > .form {display: grid !important; grid-template-columns: repeat(auto-fill, minmax(min(230px, 100%), 1fr))}
:focus-visible {outline: 2px solid #0f6b63 !important; outline-offset: 2px}
.dark :focus-visible {outline-color: #5fc7bb !important}

.masthead {display: flex; align-items: baseline; gap: 14px; flex-wrap: wrap; padding: 22px 2px 6px}
.masthead h1 {font-size: 1.6rem; font-weight: 700; letter-spacing: -.02em; margin: 0}
.masthead h1::before {content: ""; display: inline-block; width: .62em; height: .62em; margin-right: .4em;
  border-radius: .16em; background: linear-gradient(135deg, #0f6b63 50%, #d98a2b 50%)}
.masthead p {margin: 0; color: var(--body-text-color-subdued)}
.masthead form {margin: 0 0 0 auto}
.masthead button {font: inherit; padding: 6px 12px; border: 1px solid var(--border-color-primary); border-radius: 8px;
  background: none; color: inherit; cursor: pointer}

.section h2 {font-size: 1.05rem; font-weight: 650; margin: 6px 0 0}
.section p {color: var(--body-text-color-subdued); margin: 2px 0 0; font-size: .92rem}

.lead {margin: 2px 0 0; padding: 12px 16px; font-size: .95rem; color: var(--body-text-color); border-radius: 10px;
  background: #e6f1ef; border: 1px solid #b9d8d3}
.dark .lead {background: #13302d; border-color: #24514c}
.lead.warn {background: #fdf3e0; border-color: #e6cf9f}
.dark .lead.warn {background: #33270f; border-color: #5d4a20}
.gradio-container .go {position: sticky !important; bottom: 0; z-index: 50; padding: 10px 0;
  background: var(--body-background-fill)}
.note.good {color: #1d5a24; font-weight: 600}
.dark .note.good {color: #a9dfae}
.count {font-size: .92rem; font-weight: 600; margin: 2px 0 8px}
.note {font-size: .9rem; color: var(--body-text-color-subdued); margin: 8px 0 0}
.note.warn {color: #8a5408}
.dark .note.warn {color: #e3b066}
.thumbs {display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 10px}
.thumbs figure {margin: 0; border: 1px solid var(--block-border-color); border-radius: 10px; overflow: hidden;
  background: var(--block-background-fill); min-width: 0}
.thumbs img {display: block; width: 100%; aspect-ratio: 1; object-fit: cover; margin: 0}
.thumbs figcaption {padding: 6px 8px; font-size: .76rem; line-height: 1.3; display: flex; flex-direction: column}
.thumbs b {font-weight: 600; white-space: nowrap; overflow: hidden; text-overflow: ellipsis}
.thumbs span {color: var(--body-text-color-subdued)}
.thumbs .bad {grid-column: 1 / -1; border-color: #c2410c; background: #fff4ed}
.dark .thumbs .bad {background: #2c1a12; border-color: #c2602c}
.thumbs .bad figcaption {font-size: .88rem; gap: 2px; padding: 8px 12px}
.thumbs .bad b {white-space: normal; color: #9a3412}
.dark .thumbs .bad b {color: #f3a67c}

.problems {border: 1px solid #c2410c; background: #fff4ed; border-radius: 10px; padding: 10px 14px; color: #7c2d12}
.dark .problems {background: #2c1a12; border-color: #c2602c; color: #f6c3a5}
.problems ul {margin: 4px 0 0; padding-left: 1.2em}
.problems p {margin: 0; font-weight: 600}

.run {border: 1px solid var(--block-border-color); background: var(--block-background-fill); border-radius: 12px;
  padding: 16px 18px}
.run .row {display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: center}
.run .steps b {font-variant-numeric: tabular-nums}
.run .time {margin-left: auto; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums}
.badge {font-size: .82rem; font-weight: 650; padding: 3px 11px; border-radius: 99px; background: #e9e5de;
  color: #3c3831}
.dark .badge {background: #37332d; color: #dedad2}
.running .badge {background: #d6efeb; color: #0b544e}
.dark .running .badge {background: #123f3a; color: #9fe3da}
.finished .badge {background: #dcf1dc; color: #1d5a24}
.dark .finished .badge {background: #193d1d; color: #a9dfae}
:is(.failed, .interrupted) .badge {background: #fde4d8; color: #8f2d0c}
.dark :is(.failed, .interrupted) .badge {background: #47200f; color: #f5b597}
.runs .badge {font-size: .74rem; font-style: normal; padding: 1px 8px}
.run .bar {height: 8px; border-radius: 99px; background: #ece8e1; margin: 12px 0 4px; overflow: hidden}
.dark .run .bar {background: #33302a}
.run .bar div {height: 100%; border-radius: 99px; background: #0f6b63; transition: width .6s ease}
.dark .run .bar div {background: #5fc7bb}
.run.failed .bar div, .run.interrupted .bar div {background: #c2602c}
.run.stopped .bar div {background: #9a9387}
.run .outcome {margin: 12px 0 0; font-weight: 600; white-space: pre-wrap}
.run pre {margin: 4px 0 0; padding: 10px 12px; border-radius: 8px; background: #f4f1ec;
  font: .78rem/1.45 var(--font-mono);
  max-height: 260px; overflow: auto; white-space: pre-wrap}
.dark .run pre {background: #14120f}
.facts {margin: 10px 0; padding-left: 1.3em; list-style: disc}
.gradio-container .facts li {font-size: .88rem; margin: 0; color: var(--body-text-color-subdued)}
#chart {padding-bottom: 14px}
.runs {display: flex; flex-direction: column; gap: 6px; max-height: 640px; overflow-y: auto; padding: 2px}
.runs button {all: unset; box-sizing: border-box; cursor: pointer; padding: 9px 12px; border-radius: 10px;
  border: 1px solid var(--block-border-color); background: var(--block-background-fill); color: var(--body-text-color);
  display: flex; flex-direction: column; gap: 3px; overflow-wrap: anywhere}
.runs button:hover {border-color: var(--input-border-color)}
.runs button[aria-checked=true] {border-color: var(--color-accent); box-shadow: inset 3px 0 0 var(--color-accent)}
.runs b {font-weight: 600; font-size: .92rem}
.runs span {font-size: .8rem; color: var(--body-text-color-subdued)}
.run {overflow-wrap: anywhere}
.gradio-container input[role="listbox"] {text-overflow: ellipsis; padding-right: 28px}
.gradio-container .actions :is(button, a) {flex: 0 1 auto !important; padding: 8px 14px; font-size: .92rem}
.gradio-container .beside {position: sticky !important; top: 12px; align-self: flex-start}
.strip {display: flex; gap: 10px; overflow-x: auto; padding: 4px 2px 12px; scrollbar-width: thin}
.strip figure {margin: 0; flex: none; display: flex; flex-direction: column; align-items: flex-start; gap: 6px}
.strip figcaption {font-size: .8rem; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums}
.gradio-container .strip a {padding: 0}
.strip img {width: 136px; height: 136px; object-fit: cover; border-radius: 10px; margin: 0; display: block;
  border: 1px solid var(--block-border-color)}
.adapter {display: flex; flex-wrap: wrap; gap: 12px; padding: 10px 14px; align-items: center; font-size: .88rem;
  background: var(--block-background-fill)}
.adapter .seen {display: flex; gap: 6px}
.adapter img, .glimpse {width: 72px; height: 72px; object-fit: cover; border-radius: 8px; margin: 0}
.adapter div:last-child {display: flex; flex-direction: column; min-width: 0; overflow-wrap: anywhere}
.adapter span {color: var(--body-text-color-subdued)}
.glimpse {width: 192px; height: 192px; margin-top: 12px; border-radius: 10px; display: block}
.portrait {width: 256px; height: 256px; margin: 0; border-radius: 10px; display: block}
.run.warned .badge {background: #fbeac8; color: #7a4a05}
.dark .run.warned .badge {background: #46320c; color: #f0cd8c}
.verdict .badge {font-size: 1rem; padding: 5px 16px}
.verdict p {margin: 8px 0 0}
.verdict details {margin-top: 12px}
.verdict summary {cursor: pointer; font-weight: 600; font-size: .92rem}
.bits {display: grid; grid-template-columns: repeat(24, 1fr); gap: 3px; margin: 14px 0 4px}
.bits i {height: 20px; border-radius: 4px; border: 1px solid #0f6b63; background: transparent}
.bits i.yes {background: #0f6b63}
.dark .bits i {border-color: #5fc7bb}
.dark .bits i.yes {background: #5fc7bb}
.legend {list-style: none; padding: 0; margin: 0 0 10px; display: flex; flex-wrap: wrap; gap: 4px 18px;
  font-size: .88rem}
.legend li {display: flex; align-items: center; gap: 6px; margin: 0}
.legend i {width: 16px; height: 16px; border: 1px solid #857f75; border-radius: 3px; flex: none}
.heads {display: grid; grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)); gap: 12px}
.heads figure {margin: 0; min-width: 0}
.heads img {width: 100%; display: block; margin: 0; border: 1px solid #857f75; image-rendering: pixelated}
.heads figcaption {font-size: .8rem; color: var(--body-text-color-subdued); margin-top: 3px}
.gradio-container #sla-slider {max-width: 480px; margin: 0 !important}
.ends {display: grid; grid-template-columns: 1fr 1fr; gap: 12px}
.ends figure {margin: 0; min-width: 0; display: flex; flex-wrap: wrap; gap: 6px; align-content: start}
.ends figcaption {flex: 1 0 100%; font-size: .88rem; font-weight: 600}
.gradio-container .ends a {flex: 1 1 60px; max-width: 150px; padding: 0}
.gradio-container .ends img {width: 100%; display: block; margin: 0; padding: 0; border-radius: 6px}
.meanings {margin: 4px 0; font-size: .92rem}
.meanings dt {font-weight: 600; margin-top: 8px}
.meanings dd {margin: 0; color: var(--body-text-color-subdued)}
.scroll {overflow-x: auto}
table.plain {border-collapse: collapse; font-size: .88rem; width: 100%; margin: 8px 0 0; border: 0}
.gradio-container table.plain :is(th, td) {text-align: left; padding: 7px 16px 7px 0; vertical-align: top; border: 0;
  border-bottom: 1px solid var(--block-border-color); font-variant-numeric: tabular-nums}
.gradio-container table.plain tr {border: 0}
table.plain th {font-weight: 600; color: var(--body-text-color-subdued)}
#results .grid-container {grid-template-columns: repeat(auto-fill, minmax(min(240px, 100%), 1fr)) !important}
.waiting {border: 1px dashed var(--block-border-color); border-radius: 12px; background: none}
.empty {text-align: center; padding: 48px 16px; color: var(--body-text-color-subdued)}
.gradio-container .label-wrap {text-align: left}
.log textarea {font: .78rem/1.5 var(--font-mono) !important}
.facts-line {color: var(--body-text-color-subdued); font-size: .92rem}
"""

HEAD = """<style>
body .gradio-container.gradio-container {overflow: clip !important}
@media (min-width: 1900px) {body .gradio-container.gradio-container {max-width: 1480px !important; zoom: 1.2}}
@media (max-width: 640px) {
  .gradio-container .main.app {padding: 8px 12px !important}
  .gradio-container .tab-container button {padding: 0 8px !important}
  .gradio-container .actions :is(button, a) {flex: 1 1 45% !important; min-width: 130px !important}
  .gradio-container .go button {padding: 10px 8px !important; white-space: nowrap}
  .gradio-container .masthead {padding-top: 14px; gap: 2px 10px}
  .gradio-container .run .time {margin-left: 0; width: 100%}
  .gradio-container .runs {max-height: 230px}
  .gradio-container .beside {position: static !important}
  .gradio-container footer .divider {display: none}
}
@media (prefers-reduced-motion: reduce) {.run .bar div {transition: none !important}}
</style>"""
"""What depends on the screen. It goes into the page's head: gradio's own styles take media queries for the parts of the
page only, not for the page."""
