"""qwenref: an independent Qwen2 inference engine that shows and judges every stage of its forward pass."""

__version__ = "0.1.0"
