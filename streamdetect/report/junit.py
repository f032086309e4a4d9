"""Verdicts as JUnit XML, which CI servers show as tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from streamdetect.findings.expectations import Verdict

# Everything except XML 1.0 characters (Char, §2.2), which cannot be escaped either. CR would be read back as LF.
_NO_CHARACTER = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_REPLACEMENT = "\ufffd"


def junit(verdicts: Sequence[Verdict], *, suite: str, seconds: float) -> bytes:
    """One test case for each verdict. An undecided verdict is an error: a partial run must not pass a gate."""
    failed = sum(verdict.holds is False for verdict in verdicts)
    undecided = sum(verdict.holds is None for verdict in verdicts)
    counts = {
        "name": _clean(suite),
        "tests": str(len(verdicts)),
        "failures": str(failed),
        "errors": str(undecided),
        "time": f"{seconds:.3f}",
    }
    root = Element("testsuites", counts)
    cases = SubElement(root, "testsuite", counts | {"skipped": "0"})
    for verdict in verdicts:
        case = SubElement(cases, "testcase", {"classname": verdict.kind, "name": _clean(verdict.name)})
        if verdict.holds:
            SubElement(case, "system-out").text = _clean(verdict.detail)
        else:
            outcome = "error" if verdict.holds is None else "failure"
            SubElement(case, outcome, {"message": _clean(verdict.detail), "type": verdict.kind})
    indent(root)
    document: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _clean(text: str) -> str:
    return _NO_CHARACTER.sub(_REPLACEMENT, text)
