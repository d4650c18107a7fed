"""The list of all runs: state, name and method of each, one of them chosen. A radio group that is read from disk."""

from __future__ import annotations

import html
from datetime import datetime
from typing import Any

import gradio as gr

from app import text, watch
from app.jobs import Queue

# The list is redrawn by the server, and whoever goes through it with the keyboard must not lose the place.
CHOOSE = """
let moved = false;
const all = () => [...element.querySelectorAll('[role=radio]')];
const choose = button => {
  moved = true;
  trigger('select', {index: all().indexOf(button), value: button.dataset.run});
};
element.addEventListener('click', event => {
  const button = event.target.closest('[role=radio]');
  if (button) choose(button);
});
element.addEventListener('keydown', event => {
  const step = {ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1}[event.key];
  const buttons = all(), place = buttons.indexOf(event.target.closest('[role=radio]'));
  if (!step || place < 0) return;
  event.preventDefault();
  choose(buttons[(place + step + buttons.length) % buttons.length]);
});
watch('value', () => {
  if (moved) element.querySelector('[aria-checked=true]')?.focus();
  moved = false;
});
"""


class RunList:
    """The list, and the name of the run that is chosen in it."""

    def __init__(self) -> None:
        """Render inside the present gradio context."""
        self.seen = gr.HTML("", js_on_load=CHOOSE, padding=False, elem_id="runs")
        # In the page, but out of sight: buttons that work without the server read the name from it.
        self.name = gr.Textbox(label=text.RUNS, visible="hidden")
        self.seen.select(_chosen, None, self.name, api_visibility="private", show_progress="hidden", queue=False)


def _chosen(event: gr.SelectData) -> str:
    return str(event.value)


def listed(queue: Queue, chosen: str) -> str:
    """Return all runs as HTML, newest first."""
    rows = "".join(_row(queue.name(run), record, queue.name(run) == chosen) for run, record in queue.trusted())
    return f"<div class='runs' role='radiogroup' aria-label='{text.RUNS}'>{rows}</div>"


def _row(name: str, record: dict[str, Any], is_chosen: bool) -> str:
    steps = watch.total_steps(record)
    facts = [str(record["method"]), _when(record), text.plural(text.STEPS, steps) if steps else ""]
    checked = "aria-checked='true' tabindex='0'" if is_chosen else "aria-checked='false' tabindex='-1'"
    return (
        f"<button type='button' role='radio' {checked} class='{record['state']}' data-run='{html.escape(name)}'>"
        f"<b>{html.escape(name)}</b><span><i class='badge'>{text.STATES[record['state']]}</i> "
        f"{html.escape(' · '.join(filter(None, facts)))}</span></button>"
    )


def _when(record: dict[str, Any]) -> str:
    try:
        return datetime.fromisoformat(record["created"]).astimezone().strftime("%d %b %H:%M")
    except (KeyError, TypeError, ValueError):
        # A record of another program.
        return ""
