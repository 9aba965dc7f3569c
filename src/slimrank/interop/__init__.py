# SPDX-License-Identifier: Apache-2.0
"""What a caller hands over as a model, made an ordinary module, or refused with what to do instead."""

from slimrank.interop._receive import Received, receive

__all__ = ["Received", "receive"]
