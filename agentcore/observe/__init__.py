"""What can be seen of agentcore from outside: its log records, and what it counts.

Both cost nothing until they are asked for: `init_logging` gives the logger ``agentcore`` a handler, `init_metrics` begins
to count.
"""

from agentcore.observe._logging import init_logging
from agentcore.observe._metrics import Metrics, init_metrics

__all__ = ["Metrics", "init_logging", "init_metrics"]
