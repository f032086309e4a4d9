"""Findings: episodes, differences between runs and between states, expectations, rankings and timelines of keys.

Belongs here: the result types of a backtest (`outcome`) and pure functions of alerts and of keys. Does not belong
here: evaluating events (detect), running anything (service), formats (report).
"""
