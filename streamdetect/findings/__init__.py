"""Findings: episodes, differences between two runs, expectations, near misses, the timeline of a key.

Belongs here: the result types of a backtest (`outcome`) and pure functions of alerts and tracked keys. Does not belong
here: evaluating events (detect), running anything (service), formats (report).
"""
