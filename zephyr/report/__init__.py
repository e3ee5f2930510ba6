"""What a person looks at: the model card of an export, and the page of a run folder."""

from zephyr.report.card import card as card
