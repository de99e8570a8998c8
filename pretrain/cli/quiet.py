"""Libraries without their chatter, where no log level turns it off."""

import logging
import os
import re
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
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


# What fails in a save or a restore is raised, once. Where one array fails, Orbax and TensorStore have an
# exception for each that ends after it as well, which nobody can catch, and pages of settings in each.
_LATE_ARRAYS = re.compile("Event loop is closed|Encountered error while reading array index")


def _is_not_orbax(record: logging.LogRecord) -> bool:
    # asyncio logs what of Orbax nobody awaits: of a task the message says where it comes from, of tasks
    # that were gathered the traceback alone.
    places = [record.pathname]
    if record.name == "asyncio":
        failed = record.exc_info[2] if record.exc_info else None
        places = [str(record.msg), *(frame.filename for frame in traceback.extract_tb(failed))]
    return not any(os.path.join("", "orbax", "checkpoint", "") in place for place in places)


def _without_late_arrays(nobodys: Any) -> None:
    if not _LATE_ARRAYS.match(str(nobodys.exc_value)):
        sys.__unraisablehook__(nobodys)


def _without_a_tpu() -> None:
    """Tells libtpu what it would ask a cloud machine, and complain of, where no device is Google's."""
    from pretrain.parallel.topologies import ALONE

    if "JAX_FORCE_TPU_INIT" in os.environ:
        return
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if all(vendor.read_text().strip() != "0x1ae0" for vendor in vendors):
        for name, value in ALONE.items():
            os.environ.setdefault(name, value)


def quiet_logs() -> None:
    """Libraries speak when something is wrong, not to tell that it is not."""
    import_tensorflow()
    import absl.logging
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():  # its bars draw over themselves, which a file cannot
        tfds.disable_progress_bar()
    absl.logging.set_verbosity(absl.logging.ERROR)
    sys.unraisablehook = _without_late_arrays
    # What Orbax had not begun of a save that failed.
    warnings.filterwarnings("ignore", "coroutine 'async_serialize.*' was never awaited", RuntimeWarning)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_not_orbax)
    _without_a_tpu()
    for name in ("absl", "orbax", "jax", "tensorflow", "tensorflow_datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
