"""Exceptions that the user sees."""

INTERRUPTED = 130
"""Exit code of a command ended by Ctrl-C, as in shells."""


class BespokeError(Exception):
    """An error that the user can correct.

    The message is one sentence that names the problem and the remedy. Entry points print it
    without a traceback and exit with code 2. Unprintable characters, such as a line break in a
    file name, are escaped, so the message is always one line.
    """

    def __init__(self, message: str):
        super().__init__(
            "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in message)
        )


class Interrupted(KeyboardInterrupt):
    """Training was interrupted by Ctrl-C.

    Args:
        step: training step that was reached.
        remedy: how to continue.
    """

    def __init__(self, step: int, remedy: str):
        super().__init__(step, remedy)
        self.step, self.remedy = step, remedy

    def __str__(self) -> str:
        return f"Interrupted at step {self.step}: {self.remedy}."


def one_sentence(error: BaseException) -> str:
    """A library's error message on one line, without OmegaConf's lines on config keys and types."""
    lines = [
        line.strip()
        for line in str(error).splitlines()
        if line.strip() and not line.strip().startswith(("full_key", "object_type"))
    ]
    return " ".join(lines) or type(error).__name__
