# SPDX-License-Identifier: Apache-2.0
"""Ranks, widths of channel groups and dropped blocks, chosen together."""
