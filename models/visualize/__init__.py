"""L6: visualizations of a trained model: `python -m models.visualize --help`.

Each file has the functions that compute the arrays of one kind of picture, and below them the functions that draw.
"""
