# SPDX-License-Identifier: Apache-2.0
"""`agent-identity demo` and `billing`: a story that runs the main job, and the service that it calls."""
