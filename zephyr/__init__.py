"""The Zephyr recipe from scratch: distilled SFT, AI feedback, distilled DPO (arXiv:2310.16944)."""
