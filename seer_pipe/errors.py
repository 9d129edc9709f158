"""The one kind of error that a user can fix: bad input, a wrong setting, a missing path."""


class UserError(ValueError):
    """Says in one line what is wrong, where (file, key, shard, sample), and what to do.

    Command-line tools print it as ``error: …`` without a traceback and exit with code 2.
    """
