"""The machine: the card and its memory, its operations, launches that are recorded."""
