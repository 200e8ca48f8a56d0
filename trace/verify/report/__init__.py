"""A verification in words: text.py for a terminal and as JSON, html.py as a page."""
