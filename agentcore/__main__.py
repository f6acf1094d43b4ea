"""``python -m agentcore`` is the command ``agentcore``."""

import sys

from agentcore.cli import main

sys.exit(main())
