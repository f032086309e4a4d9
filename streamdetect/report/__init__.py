"""How findings are shown: HTML, Markdown, CSV, JSON, JUnit.

Belongs here: turning an outcome (`findings.outcome`) and the course of keys (`detect.tracks`) into text for people and
other programs, with every value of an event made harmless on its way. Does not belong here: deciding or comparing
anything (detect, findings), running anything, opening files (service, cli).
"""
