"""What an engine may compute with, and each operation under it: its value in float64, and how far rounding moves it."""
