"""Facts and rules: plain data and pure functions. No I/O, no clock, standard library only."""
