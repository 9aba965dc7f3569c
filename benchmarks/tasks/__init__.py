# SPDX-License-Identifier: Apache-2.0
"""The benchmark's tasks: four trained networks and their pictures."""
