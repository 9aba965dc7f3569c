# SPDX-License-Identifier: Apache-2.0
"""One forward, operation by operation: which indices stand for the same unit."""
