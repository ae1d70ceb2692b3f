"""The one exception that means "the user can put this right"."""


class UserError(Exception):
    """A mistake in what the user gave: a file, a flag, a config value.

    The message is one line that names what is wrong and where, what was found, and what is
    expected. The command-line programs print it and exit with status 2, without a traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


class Stopped(Exception):
    """A signal ended the run in good order.

    Attributes:
      signal: its number; a program ends with status 128 + signal.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal
