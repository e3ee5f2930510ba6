"""What teachers make: instructions, dialogues, feedback, pairs, and the lineage of each."""
