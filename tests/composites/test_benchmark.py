"""benchmarks/composites.py, from its command to its last line."""

import re
import subprocess
import sys
from pathlib import Path

from tests.tiny_pool import write_pool

ROOT = Path(__file__).parents[2]


def test_rates_and_costs_are_printed(tmp_path):
    pool = write_pool(tmp_path)
    command = [sys.executable, "benchmarks/composites.py", "--pool", str(pool), "--sizes", "64", "--count", "2"]
    done = subprocess.run([*command, "--costs", "3", "--beside", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^64 px: [\d.]+ examples a second and core$", done.stdout, re.MULTILINE)
    assert "0 of 2 examples are not the same bytes" in done.stdout
    assert len(re.findall(r"^ +[\d.]+% +[\d.]+  \S", done.stdout, re.MULTILINE)) == 3
