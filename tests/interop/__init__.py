"""Real packages on real sockets, and other projects' suites; asked for by --interop."""
