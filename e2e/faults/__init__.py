"""Faults, systematically: what happens to the operator when the API server, Prometheus, nodes or itself misbehave.

Everything is the real thing: the control plane, Prometheus, the operator's own code. Between the operator and its two
neighbours stands a proxy (`proxy.py`) that does to requests and watches what a test tells it to.
"""
