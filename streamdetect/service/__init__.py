"""The running program: sources, events, detect and sinks driven together.

Belongs here: the loop, the order of stopping, the tally, what happens to a refused record. Does not belong here: what
counts (detect), how bytes look (events), how a broker is reached (sources, sinks).
"""
