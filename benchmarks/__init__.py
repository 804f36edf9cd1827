"""Timings, temporary memory and accuracy of jaxsoftmax beside its peers: `python -m benchmarks`."""
