"""The running program: drives sources, events, detect and sinks.

Belongs here: loops, the commit protocol, the order of shutdown, counters, the way of a refused record. Does not belong
here: which events count (detect), the format of records (events), access to brokers (sources, sinks). Each wing has
one rule:

    live       reads Kafka and publishes alerts until stopped: startup, loop, commit protocol, recovery
    bounded    bounded input: replay, backtest, worker processes
    inspect    read-only views of a checkpoint or of one key: describe, verify, compare, explain
    status     what a live run exposes about itself: state, metrics, HTTP, status page, stall monitor

Modules at this level (`pipeline`, `summary`, `gc`) are used by more than one wing. Wings do not import each other,
except that `inspect` uses `bounded` and `live`, and `status` listens to `live`.
"""
