"""Findings derived from alerts: episodes, differences between two runs, expectations, near misses.

Belongs here: the result types of a backtest (`outcome`) and pure functions of alert documents. Does not belong here:
evaluating events (detect), running anything (service), formats (report).
"""
