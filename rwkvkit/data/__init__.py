"""From text files to the binidx pair a trainer reads: read, encode, order, write, plan."""
