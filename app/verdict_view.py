"""A verdict as HTML: the answer, what it means, the odds in words, the bits as a bar, all figures below."""

from __future__ import annotations

import html
from dataclasses import asdict

from app import text, text_verify
from app.verifying import Judged

KINDS = {"detected": "finished", "not detected": "stopped", "inconclusive": "warned"}


def odds(p: float) -> str:
    """Return a probability as people say it: 1 of 2,000."""
    if p > 0.67:
        return text_verify.ODDS_MOST
    if p > 0.4:
        return text_verify.ODDS_HALF
    if p <= 0.0:
        return text_verify.ODDS.format(count="more than 10^300")
    count = 1 / p
    if count >= 1e15:
        return text_verify.ODDS.format(count=f"10^{len(str(int(count))) - 1}")
    digits = len(str(int(count))) - 2
    return text_verify.ODDS.format(count=f"{round(count, -max(0, digits)):,.0f}")


def verdict(judged: Judged) -> str:
    """Return the HTML of a verdict."""
    found = judged.verdict
    owner = text_verify.OWNER.format(owner=judged.owner) if judged.owner else ""
    meaning = text_verify.MEANING[found.verdict].format(key=judged.key, owner=owner, reason=found.reason)
    facts = {"matches": found.matches, "bits": found.bits, "key": judged.key, "threshold": found.threshold}
    sentences = [(text_verify.MATCHES if found.threshold is not None else text_verify.MATCHES_ONLY).format(**facts)]
    sentences.append(text_verify.CHANCE.format(odds=odds(found.p_value)))
    if found.keys * found.searches > 1:
        tried = text.plural(text_verify.KEYS_TRIED, found.keys)
        readings = text.plural(text_verify.READINGS, found.searches)
        sentences.append(text_verify.CORRECTED.format(keys=tried, readings=readings, odds=odds(found.p_corrected)))
    if found.verdict != "detected" and found.searches == 1:
        sentences.append(text_verify.PERHAPS)
    told = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)
    return (
        f"<div class='run verdict {KINDS[found.verdict]}' role='status'><div class='row'><span class='badge'>"
        f"{text_verify.ANSWERS[found.verdict]}</span></div><p class='outcome'>{html.escape(meaning)}</p>{told}"
        f"{bits(judged)}{_details(judged)}</div>"
    )


def bits(judged: Judged) -> str:
    """Return the bar of the bits."""
    cells = "".join(f"<i class='{'yes' if agrees else 'no'}'></i>" for agrees in judged.agree)
    label = text_verify.BIT_LABEL.format(matches=sum(judged.agree), bits=len(judged.agree))
    return f"<div class='bits' role='img' aria-label='{label}'>{cells}</div><p class='note'>{text_verify.BITS}</p>"


def _details(judged: Judged) -> str:
    values = asdict(judged.verdict)
    rows = "".join(
        f"<tr><th scope='row'>{label}</th><td>{html.escape(_word(values[name]))}</td></tr>"
        for name, label in text_verify.ROWS.items()
    )
    return f"<details><summary>{text_verify.DETAILS}</summary><table class='plain'>{rows}</table></details>"


def _word(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
