"""L6: pictures of what is inside a trained model: `python -m models.visualize --help`.

Each file has the numbers of a kind of picture, as functions on arrays, and below them what draws these.
"""
