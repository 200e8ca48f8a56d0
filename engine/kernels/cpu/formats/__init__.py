"""Packed weight formats, a file each: how a row block is read."""
