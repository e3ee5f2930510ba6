"""A person talks to a model, in the terminal or in the browser."""
