"""The client's state machine: no I/O, no clock and no randomness of its own."""
