"""The tests of selectserve: `python3 -m tests` runs them all, from nothing but Python and pip."""
