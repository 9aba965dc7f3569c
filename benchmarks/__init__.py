# SPDX-License-Identifier: Apache-2.0
"""Tables that prove what slimrank says of itself; see ``docs/benchmarks.md``."""
