"""L7: the one kind of error a user of the command line may cause."""


class InputError(Exception):
    """Something the user gave is wrong or missing: the command line shows the message as one line and exits with 2."""
