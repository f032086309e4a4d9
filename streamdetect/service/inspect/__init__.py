"""Read-only views: what a checkpoint holds, whether it matches its records, and why one key alerts or does not.

Nothing here changes a checkpoint; a `run` may be writing it meanwhile.
"""
