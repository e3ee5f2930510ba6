"""A run is checked before step 0 (preflight), and its trajectory under other layouts
(certificate)."""
