# SPDX-License-Identifier: Apache-2.0
"""Runs the reference system, AIMET's model compression, beside slimrank. See the README of this folder."""
