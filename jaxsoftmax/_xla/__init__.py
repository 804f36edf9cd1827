"""What is about the compiler and the devices: forms of operations, collectives, dtypes.

Nothing here knows what a loss is, and nothing outside knows which platform it runs on.
"""
