"""Bounded input: replay and backtest, in one process or in several.

Belongs here: decoding and pre-aggregation in workers, scheduling of partitions, evaluation of variants. Nothing here
writes a checkpoint or depends on a wall clock.
"""
