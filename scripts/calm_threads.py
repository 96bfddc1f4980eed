"""Limits how long OpenMP's threads spin while they wait for each other; see fdconv_zoo/startup.py.

The scripts import this module before torch, because OpenMP reads the setting only once.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
