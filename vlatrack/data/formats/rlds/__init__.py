"""RLDS datasets, as TensorFlow Datasets and Open X-Embodiment store them: reading, without TensorFlow."""
