# SPDX-License-Identifier: Apache-2.0
"""``python -m slimrank``: the command line."""

from slimrank.cli import main

if __name__ == "__main__":
    main()
