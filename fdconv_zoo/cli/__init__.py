"""Commands of `fdconv-zoo`. The files in scripts/ start some of them, too."""
