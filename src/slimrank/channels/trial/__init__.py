# SPDX-License-Identifier: Apache-2.0
"""Groups tried: a slimmed model must do what the masked one does."""
