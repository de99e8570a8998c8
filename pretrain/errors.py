"""The one exception that means "what you asked for cannot be done as asked"."""


class InputError(ValueError):
    """The user's input is wrong: a file, a flag, a setting.

    The message is one sentence that names the thing, the place and the fix. The command line prints it
    without a traceback and exits with 2; every other exception keeps its traceback and exits with 1.
    """
