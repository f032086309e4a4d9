"""The running program: sources, events, detect and sinks driven together.

Belongs here: loops, the commit protocol, shutdown order, counters, what happens to a refused record. Does not belong
here: what counts (detect), how bytes look (events), how a broker is reached (sources, sinks). Each wing has one rule:

    live       Kafka in, alerts out, until stopped: startup, loop, commit protocol, recovery
    bounded    input that ends: replay, backtest, worker processes
    inspect    read-only views of a checkpoint or of one key: describe, verify, compare, explain
    status     what a live run exposes about itself: state, metrics, HTTP, status page, stall monitor

Modules at this level (`pipeline`, `summary`, `gc`) are used by more than one wing. Wings do not import each other,
except that `inspect` uses `bounded` and `live`, and `status` listens to `live`.
"""
