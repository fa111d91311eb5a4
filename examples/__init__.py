"""Programs to read and to run: the ladder (01 to 10), its probe, and real applications."""
