"""Times, temporary memory and accuracy of jaxsoftmax and its peers: `python -m benchmarks`."""
