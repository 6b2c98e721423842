"""The one exception that is meant for the user."""


class BespokeError(Exception):
    """Something the user can put right: the message names the thing and the remedy, in one sentence.

    Entry points print the message without a traceback and exit with code 2.
    """
