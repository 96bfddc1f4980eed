"""The commands of `fdconv-zoo`; some of them are started by scripts/, too."""
