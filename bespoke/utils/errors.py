"""The exceptions that are meant for the user."""

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended, as shells have it."""


class BespokeError(Exception):
    """Something the user can put right: the message names the thing and the remedy, in one sentence.

    Entry points print the message without a traceback and exit with code 2. It is one line whatever is in a file's name: what cannot
    be printed is escaped.
    """

    def __init__(self, message: str):
        super().__init__(
            "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in message)
        )


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training.

    Args:
        step: how far it had come.
        remedy: how to go on.
    """

    def __init__(self, step: int, remedy: str):
        super().__init__(step, remedy)
        self.step, self.remedy = step, remedy

    def __str__(self) -> str:
        return f"Interrupted at step {self.step}: {self.remedy}."


def one_sentence(error: BaseException) -> str:
    """A library's message in one line, without the places in its config that it lists."""
    lines = [
        line.strip()
        for line in str(error).splitlines()
        if line.strip() and not line.strip().startswith(("full_key", "object_type"))
    ]
    return " ".join(lines) or type(error).__name__
