"""What a person looks at: the model card of an export, and the page of a run folder."""

from zephyr.report.card import card as card
from zephyr.report.page import write_html as write_html
from zephyr.report.page import write_report as write_report
