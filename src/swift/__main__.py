"""`python -m swift` is `swift`."""

import sys

from swift.cli import main
from swift.launch import leave

sys.exit(leave(main()))
