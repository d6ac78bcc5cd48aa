"""Set threads for all tests before anything imports torch, and leave sources to their tools."""

from tools import runner_env

runner_env.apply(runner_env.TESTS)

# Lessons' sources are run through the notebooks that are made from them.
collect_ignore = ["notebooks/src", "tools/setup_cell.py"]
