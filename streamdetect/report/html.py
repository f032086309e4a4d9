"""The report as one HTML document: loads nothing, runs nothing, escapes everything.

The policy in the head allows the one style sheet in the document (by its hash) and nothing else. Values of events are
written by one filter (`value`): long ones are cut with the full text in the title, and characters that hide or reorder
text are written as their code points.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from streamdetect import __version__
from streamdetect.detect.near_misses import TrackedKey
from streamdetect.findings.outcome import Outcome
from streamdetect.report.key_views import near_view
from streamdetect.report.plot_data import FATES
from streamdetect.report.views import MOST_NEAR_PLOTTED, MOST_PLOTTED, page_view
from streamdetect.report.words import LONGEST, cut, destination_text, moment, number, span, visible

_LONGEST_TITLE = 2_000
_LONGEST_SENTENCE = 500
_SHORT = 22


def page(outcome: Outcome) -> str:
    """The whole report. Equal outcomes give equal bytes."""
    return _render("report.html.j2", view=page_view(outcome), outcome=outcome)


def key_page(title: str, tracked_keys: Sequence[TrackedKey], interval_ms: int) -> str:
    """A page with the timelines of some keys."""
    views = [near_view(tracked, interval_ms, plotted=True) for tracked in tracked_keys]
    return _render("key.html.j2", title=title, views=views, interval_ms=interval_ms)


def _render(template: str, **values: object) -> str:
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    loader = PackageLoader("streamdetect.report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = loader.get_source(environment, "style.css")[0].strip()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment.globals |= {
        "style": Markup(style),  # noqa: S704 - our own file
        "policy": f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        "version": __version__,
        "fates": FATES,
        "most_plotted": MOST_PLOTTED,
        "most_near_plotted": MOST_NEAR_PLOTTED,
    }
    environment.filters |= {
        "value": value,
        "whole": whole,
        "plain": visible,
        "number": number,
        "moment": moment,
        "span": span,
        "destination": destination_text,
    }
    return environment


def value(text: object) -> Markup:
    """A value of an event, file or setting: isolated from the surrounding text, and cut if it is long."""
    if text is None:
        return Markup("-")
    uncut = visible(str(text))
    if len(uncut) > LONGEST:
        return Markup('<bdi title="{}">{}</bdi>').format(cut(uncut, _LONGEST_TITLE), cut(uncut))
    if len(uncut) <= _SHORT:
        return Markup('<bdi class="short">{}</bdi>').format(uncut or "(empty)")
    return Markup("<bdi>{}</bdi>").format(uncut)


def whole(text: object) -> Markup:
    """A sentence that may contain values: cut only if it is unreasonably long."""
    uncut = visible(str(text))
    if len(uncut) > _LONGEST_SENTENCE:
        return Markup('<bdi title="{}">{}</bdi>').format(
            cut(uncut, _LONGEST_TITLE), cut(uncut, _LONGEST_SENTENCE)
        )
    return Markup("<bdi>{}</bdi>").format(uncut)
