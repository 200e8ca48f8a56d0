"""The machine: vectors and tiles, kernels and the threads that run them, memory, what is compiled and kept."""
