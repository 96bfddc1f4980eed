"""The commands: those of `python -m fdconv_zoo`, and those that scripts/ starts."""
