"""Print which tests pytest collects, once for each list of arguments in a JSON document.

One process collects several times, since importing the files of the tests takes most of the time.
"""

from __future__ import annotations

import json
import sys

import pytest

if __name__ == "__main__":
    for words in json.loads(sys.argv[1]):
        print("exit code", int(pytest.main([*words, "--collect-only"])))
