# SPDX-License-Identifier: Apache-2.0
"""Small trained networks of many kinds of output: what is read right in all of them is read right."""
