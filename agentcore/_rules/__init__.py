"""Decisions without waiting: pure, synchronous, given ``now`` where time matters.

Nothing in here imports an event loop, a thread, a clock, a source of randomness or a logger, so every rule can be
enumerated, property-tested and read without knowing what runs around it.
"""
