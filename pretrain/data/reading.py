"""How a pipeline of tf.data is run."""

import tensorflow as tf


def options() -> tf.data.Options:
    """In order, and without autotuning.

    The thread that tunes may sleep through the end of its pipeline for up to a minute, and the process with
    it; and on two cores pipelines were up to a third slower with it. `tf.data.AUTOTUNE` then stands for as
    many calls at once as there are cores, and at most 16.

    >>> dataset = tf.data.Dataset.range(3).with_options(options())
    >>> [int(number) for number in dataset]
    [0, 1, 2]
    """
    chosen = tf.data.Options()
    chosen.deterministic = True
    chosen.autotune.enabled = False
    return chosen
