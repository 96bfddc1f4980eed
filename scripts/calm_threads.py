"""Makes OpenMP's threads wait for each other politely. The scripts import it before torch, which reads it only once.

Torch's threads meet after every operation. GCC's runtime, which torch brings along, lets those that come first spin at
full load for some milliseconds. Where other processes want the same cores, the one they wait for is not running, and
each operation costs the slice of time that they burn: training was seen to take ten times as long. A thousand rounds,
what the runtime itself takes where it has more threads than there are cores, last some microseconds.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
