"""L1: automatic differentiation. Read `function.py`, then `plain.py`, then `tape.py`."""
