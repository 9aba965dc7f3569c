# SPDX-License-Identifier: Apache-2.0
"""Ranks of layers alone: the simple road."""
