"""The Hugging Face Hub, through the ecosystem's own client: base models, a namespace that is watched for
checkpoints, and a repository that versions are pushed to.
"""

import os

# Read when the client is imported. Nobody asked it to tell who uses it, or to look for news of itself.
for switch in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK", "HF_HUB_DISABLE_PROGRESS_BARS"):
    os.environ.setdefault(switch, "1")
os.environ.setdefault(
    "HF_HUB_VERBOSITY", "error"
)  # its warnings have whole URLs in them: signed ones, which are secrets
