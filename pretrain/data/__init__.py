"""What happens to tokens before a model sees them, in tf.data: chunks, noise, packing, batch features."""

import tensorflow as tf

# TensorFlow only reads data here; left alone it would take all of a GPU's memory at its first operation.
tf.config.set_visible_devices([], "GPU")
