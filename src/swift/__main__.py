"""`python -m swift` is `swift`."""

import sys

from swift.cli import main

sys.exit(main())
