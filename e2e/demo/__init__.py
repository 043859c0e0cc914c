"""The demo: the same traffic served by static sizes and by the operator, measured by one account."""
