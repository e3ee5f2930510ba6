"""What a person looks at: the model card of an export, and the page of a run folder."""

from zephyr.report.card import card as card
from zephyr.report.page import leave_page as leave_page
from zephyr.report.page import write_page as write_page
