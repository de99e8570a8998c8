"""TensorFlow without its start-up chatter, which no log level turns off."""

import logging
import os
import sys
import tempfile
from typing import Any


def import_tensorflow() -> None:
    """Imports TensorFlow with the process's stderr kept aside; shows it only if the import fails.

    The chatter is written by C++ code before any setting is read, so it is caught at the file descriptor.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.set_visible_devices([], "GPU")  # it reads data here; left alone it takes all GPU memory
        except BaseException:
            aside.seek(0)
            os.write(stderr, aside.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _is_not_orbax(record: logging.LogRecord) -> bool:
    """What fails in a save is also raised; Orbax logs it as well, pages for each of its threads."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _without_late_arrays(nobodys: Any) -> None:
    """Where one array of a save fails, TensorStore has an exception for each that ends after it."""
    if str(nobodys.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(nobodys)


def quiet_logs() -> None:
    """Libraries speak when something is wrong, not to tell that it is not."""
    import_tensorflow()
    import absl.logging
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():  # its bars draw over themselves, which a file cannot
        tfds.disable_progress_bar()
    absl.logging.set_verbosity(absl.logging.ERROR)
    sys.unraisablehook = _without_late_arrays
    logging.getLogger("absl").addFilter(_is_not_orbax)
    for name in ("absl", "orbax", "jax", "tensorflow", "tensorflow_datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
