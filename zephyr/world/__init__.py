"""The embedded default: a small closed world of creatures, with its prompts, answerers, prose and
an untrained model."""
