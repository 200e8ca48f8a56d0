"""Packed weight formats, a file each: how groups are packed, and read."""
