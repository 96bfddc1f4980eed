"""Makes OpenMP's threads wait for each other politely; see fdconv_zoo/startup.py.

The scripts import it before torch, which reads the setting only once.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
