"""The facts of an engine's arithmetic, one file each: what it may be, where it shows, and its words."""
