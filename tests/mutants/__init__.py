"""The project broken on purpose, one promise at a time: `python -m tests.mutants` shows that tests notice."""
