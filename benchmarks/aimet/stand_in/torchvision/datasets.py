# SPDX-License-Identifier: Apache-2.0
"""Empty: AIMET imports the name and uses it in its tests' helpers only."""
