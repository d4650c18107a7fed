"""The report is one file that needs nothing else."""

from __future__ import annotations

import html.parser
import re

from tests.trainers.line import Line, train
from trainers import hooks, report
from trainers.hooks import every
from trainers.rundir import RunDir


def write(run: RunDir) -> str:
    return report.write(run).read_text(encoding="utf-8")


def test_a_report_of_a_run(run_dir: RunDir) -> None:
    watchers = (
        hooks.LogMetrics(run_dir, total=4, interval=1),
        every(2, hooks.evaluate(run_dir, 0), first=True),
        every(2, hooks.preview(run_dir, 0), first=True),
    )
    train(Line(), watchers, steps=4)
    run_dir.update(state="finished", outcome="all steps done", preflight=["3 parameters on <2> layers"], device="CPU")
    (run_dir.previews / ".thumbnails").mkdir()
    text = write(run_dir)
    assert text == (run_dir.path / "report.html").read_text(encoding="utf-8")
    for part in ("finished", "all steps done", "3 parameters on &lt;2&gt; layers", "CPU", "&quot;lr&quot;: 0.05"):
        assert part in text
    assert text.count("<img ") == 6
    assert text.count("data:image/png;base64,") == 6
    assert text.count("<polyline") == 1
    assert "step 4" in text


def test_nothing_is_fetched_from_elsewhere(run_dir: RunDir) -> None:
    train(Line(), (every(1, hooks.preview(run_dir, 0)),), steps=1)
    text = write(run_dir)
    assert not re.search(r"https?://|//\w+\.|<link|<script|@import|url\(", text)
    for source in re.findall(r'src="([^"]*)"', text):
        assert source.startswith("data:")


def test_what_users_wrote_is_shown_and_not_run(run_dir: RunDir) -> None:
    config = {"seed": 0, "data": {"prompt": "<script>alert(1)</script> größer"}}
    run_dir.update(config=config, outcome="<b>bad</b>")
    text = write(run_dir)
    assert "<script>" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;" in text
    assert "größer" in text


def test_a_run_that_did_nothing_has_a_report(run_dir: RunDir) -> None:
    text = write(run_dir)
    assert "none were drawn" in text
    assert "<polyline" not in text
    html.parser.HTMLParser().feed(text)


def test_a_constant_loss_is_drawn(run_dir: RunDir) -> None:
    for step in (1, 2):
        run_dir.append_metrics({"step": step, "loss": 0.5})
    assert "nan" not in re.findall(r'points="([^"]*)"', write(run_dir))[0]
