"""Read-only views: the content of a checkpoint, whether it matches its records, and why one key alerts or does not.

Nothing here changes a checkpoint, which a `run` may be writing meanwhile.
"""
