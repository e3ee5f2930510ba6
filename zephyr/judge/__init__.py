"""Judges score answers and compare models: rules for the embedded world, and the statistics of any judged run."""
