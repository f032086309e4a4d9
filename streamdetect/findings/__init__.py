"""What alerts come to: episodes, what differs between two runs, which expectations hold, who came near.

Belongs here: the words of a backtest (`outcome`) and pure functions of alert documents. Does not belong here:
evaluating events (detect), running anything (service), or how a finding is shown (report).
"""
