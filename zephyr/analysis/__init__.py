"""Run folders become tables: what a run recorded, and what each visit of a pair says of it."""
