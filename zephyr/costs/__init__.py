"""A config, lengths and a device become a prediction: memory, floating-point operations, time."""
