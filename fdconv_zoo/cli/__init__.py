"""What the commands do: those of `python -m fdconv_zoo`, and those that scripts/ starts."""
