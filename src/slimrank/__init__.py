# SPDX-License-Identifier: Apache-2.0
"""slimrank: trained PyTorch models, smaller and faster, with their accuracy kept."""
