"""L1: reverse-mode automatic differentiation. Read `function.py`, then `plain.py`, then `tape.py`."""
