"""L7: the error for wrong input."""


class InputError(Exception):
    """The user's input is wrong or missing. The command line prints the message on one line and exits with code 2."""
