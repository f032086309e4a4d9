"""Formats of findings: HTML, Markdown, CSV, JSON, JUnit.

Belongs here: turning an outcome (`findings.outcome`) and tracked keys (`detect.near_misses`) into text for people and
programs, with every value of an event escaped. Does not belong here: deciding or comparing anything (detect, findings),
running anything, opening files (service, cli).
"""
