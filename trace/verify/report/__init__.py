"""A verification in words: terminal.py as lines, plain.py as JSON, html.py as a page."""
