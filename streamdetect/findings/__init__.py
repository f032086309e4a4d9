"""Findings: episodes, differences between two runs, expectations, the ranking of keys, the timeline of a key.

Belongs here: the result types of a backtest (`outcome`) and pure functions of alerts and of keys. Does not belong
here: evaluating events (detect), running anything (service), formats (report).
"""
