"""The Autobahn test suite's fuzzing client against a real server: see ``__main__``."""
