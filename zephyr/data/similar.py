"""Texts that were kept answer how near a new one comes to any of them, by ROUGE-L: exactly, and fast at 50,000 and more."""
import re
from array import array

from zephyr.config import BadInput


def tokens(text: str) -> list[str]:
    """As rouge-score's own tokenizer without stemming: runs of a-z and 0-9 in lower case. A text of other letters has none."""
    return re.findall("[a-z0-9]+", text.lower())


class Similar:
    """Kept texts, as strings of one character per token, and which of them hold each token.

    A text shares no more in order with a kept one than it has tokens that this holds: only where that could reach the best guess, the
    two are compared."""

    def __init__(self) -> None:
        """Raises: BadInput where rapidfuzz is missing."""
        try:
            import rapidfuzz  # noqa: F401
        except ImportError:
            raise BadInput("ROUGE-L needs rapidfuzz: pip install 'zephyr[data]'") from None
        self.names: list[str] = []
        self.texts: list[str] = []
        self.lengths = array("I")
        self.letters: dict[str, str] = {}
        self.holders: dict[str, array[int]] = {}

    def add(self, name: str, text: str) -> None:
        """Keep a text under its name."""
        letters = "".join(self.letters.setdefault(token, chr(len(self.letters) + 1)) for token in tokens(text))
        for letter in set(letters):
            self.holders.setdefault(letter, array("I")).append(len(self.names))
        self.names.append(name)
        self.texts.append(letters)
        self.lengths.append(len(letters))

    def nearest(self, text: str) -> tuple[str, float]:
        """Name and ROUGE-L F1 of the nearest kept text, of equals the first; ("", 0.0) where none shares a token.

        F1 = 2 LCS / (m + n), rounded once: 7/10 is 0.7, of which rouge-score may make 0.7000000000000001."""
        import numpy as np
        from rapidfuzz.distance import LCSseq

        letters = "".join(self.letters.get(token, "\0") for token in tokens(text))
        holders = [np.frombuffer(self.holders[letter], np.uint32) for letter in letters if letter in self.holders]
        if not holders:
            return "", 0.0
        totals = np.frombuffer(self.lengths, np.uint32) + len(letters)
        bounds = 2 * np.bincount(np.concatenate(holders), minlength=len(totals)) / totals

        def score(i: int) -> float:
            return 2 * LCSseq.similarity(letters, self.texts[i]) / int(totals[i])

        near = np.flatnonzero(bounds >= score(int(bounds.argmax())))
        rouge_l, i = max((score(i), -i) for i in near.tolist())
        return self.names[-i], rouge_l
