"""Known mistakes: each recomputes a stage as an engine with that mistake would. table.py has them all."""
