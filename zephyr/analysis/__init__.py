"""Run folders become tables: what a run recorded, each pair's visits, and what they say of a pair."""
