"""The embedded default: a closed little world of creatures, its prompts, its answerers, its prose
and an untrained model."""
